//! The switch of the element types: [`TYPES_VARIABLE`] adds to those that a chip accepts, or takes away.

use crate::chip::{Chip, TypeRow};

/// The environment variable, read once: comma-separated vendor numbers after `+` or `-`, for example `+10,-3`.
/// Only types of which the chip's table has a row can be added.
pub const TYPES_VARIABLE: &str = "RKNPU_EMU_TYPES";

/// The rows of `chip` with the changes of `text`.
///
/// # Errors
/// What is wrong with `text`, for a line.
pub fn changed(chip: &Chip, text: &str) -> Result<Vec<TypeRow>, String> {
    let mut rows = chip.types.to_vec();
    for change in text.split(',').map(str::trim).filter(|change| !change.is_empty()) {
        let (accepted, number) = match (change.strip_prefix('+'), change.strip_prefix('-')) {
            (Some(number), _) => (true, number),
            (_, Some(number)) => (false, number),
            _ => return Err(format!("{change:?} begins with neither + nor -")),
        };
        let code = number.parse::<u8>().map_err(|_| format!("{change:?} is no number of a type"))?;
        match rows.iter_mut().find(|row| row.dtype.code() == i32::from(code)) {
            Some(row) => row.accepted = accepted,
            None if !accepted => (),
            None => return Err(format!("type {code} is unknown of {}", chip.name.to_string_lossy())),
        }
    }
    Ok(rows)
}
