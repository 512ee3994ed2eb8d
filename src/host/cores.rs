//! Which of the NPU's cores work: those that compute right, and that the user wants.

use super::numbers::Numbers;
use crate::chip::Chip;
use crate::mode::Mode;

/// Whether `chip` has all the cores that `wanted` lists.
///
/// # Errors
/// The sentence for the user, if it does not.
pub fn check(wanted: &Numbers, chip: &Chip) -> Result<(), String> {
    if wanted.list.iter().all(|core| *core < chip.cores) {
        return Ok(());
    }
    let has = match chip.cores {
        1 => "core 0 only".to_owned(),
        cores => format!("cores 0 to {}", cores - 1),
    };
    Err(format!("RKNPU_CORES is {:?}, the {} has {has}", wanted.text, chip.title))
}

/// The mode with no other cores than those that `wanted` lists.
///
/// # Errors
/// None of them computes right, but others do; the sentence for the user.
pub fn restrict(mode: Mode, wanted: &Numbers) -> Result<Mode, String> {
    let mut restricted = mode;
    for (core, works) in restricted.cores.iter_mut().enumerate() {
        *works &= wanted.list.contains(&core);
    }
    if mode.is_usable() && !restricted.is_usable() {
        let right = mode.core_ids().iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(format!(
            "RKNPU_CORES is {:?}, but products come out right on other cores only: expected one of {right}",
            wanted.text
        ));
    }
    Ok(restricted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::CHIPS;

    fn cores(text: &str) -> Numbers {
        Numbers::parse(text, 31).unwrap()
    }

    #[test]
    fn cores_that_the_chip_lacks_are_named() {
        let chip = |name: &str| Chip::by_name(name).unwrap();
        assert_eq!(check(&cores("0-2"), chip("rk3588")), Ok(()));
        let error = check(&cores("3"), chip("rk3588")).unwrap_err();
        assert_eq!(error, "RKNPU_CORES is \"3\", the RK3588 has cores 0 to 2");
        let error = check(&cores("0,2"), chip("rk3576")).unwrap_err();
        assert_eq!(error, "RKNPU_CORES is \"0,2\", the RK3576 has cores 0 to 1");
        let error = check(&cores("1"), chip("rk3566")).unwrap_err();
        assert_eq!(error, "RKNPU_CORES is \"1\", the RK3566 has core 0 only");
    }

    #[test]
    fn cores_that_work_are_those_of_both() {
        let all = Mode::believed(&CHIPS[0]);
        assert_eq!(restrict(all, &cores("2,0")).unwrap().core_ids(), [0, 2]);
        let sick = Mode { cores: [true, false, true], ..all };
        assert_eq!(restrict(sick, &cores("0-1")).unwrap().core_ids(), [0]);
        let error = restrict(sick, &cores("1")).unwrap_err();
        assert!(error.contains("RKNPU_CORES is \"1\"") && error.ends_with("one of 0, 2"), "{error}");
        assert_eq!(restrict(Mode::NONE, &cores("0")), Ok(Mode::NONE), "that is another matter");
    }
}
