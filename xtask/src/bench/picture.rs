//! The pictures: bars of the prefill's shares, and lines of small batches' times.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::rows::Row;
use crate::error::{Error, Result};

const WIDTH: u32 = 1000;
const BAR: i32 = 13;
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 92, 148),
    RGBColor(200, 80, 0),
    RGBColor(0, 128, 90),
    RGBColor(150, 60, 140),
    RGBColor(110, 110, 110),
    RGBColor(170, 130, 0),
];

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn drawn(draw: impl FnOnce(&mut String) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg).map_err(|error| Error::Refused(format!("--save: cannot draw: {error}")))?;
    Ok(svg)
}

fn style(size: i32, at: HPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&BLACK).pos(Pos::new(at, VPos::Center))
}

/// Two bars a row: the share of the best schedule, and of the peak.
///
/// # Errors
/// When it cannot be drawn.
pub fn shares(rows: &[Row]) -> Result<String> {
    drawn(|svg| draw_shares(svg, rows))
}

fn draw_shares(svg: &mut String, rows: &[Row]) -> Drawn {
    let (left, right, top, pitch) = (260, 930, 70, 3 * BAR);
    let height = top + pitch * rows.len() as i32 + 20;
    let root = SVGBackend::with_string(svg, (WIDTH, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new("Prefill of 512 tokens, modelled", (24, 20), style(18, HPos::Left)))?;
    for (at, text) in [(24, "best schedule / modelled time"), (290, "arithmetic at the peak / modelled time")]
    {
        let colour = COLOURS[usize::from(at > 24)];
        root.draw(&Rectangle::new([(at, 38), (at + 12, 50)], colour.filled()))?;
        root.draw(&Text::new(text, (at + 18, 44), style(13, HPos::Left)))?;
    }
    let x = |share: f64| left + ((right - left) as f64 * share.clamp(0.0, 1.0)) as i32;
    for tenth in 0..=10 {
        let at = x(f64::from(tenth) / 10.0);
        root.draw(&PathElement::new([(at, top - 6), (at, height - 14)], RGBColor(220, 220, 220)))?;
    }
    for (at, row) in rows.iter().enumerate() {
        let y = top + pitch * at as i32;
        root.draw(&Text::new(row.label(), (left - 10, y + BAR), style(13, HPos::Right)))?;
        for (which, share) in [row.prefill_roofline_share, row.prefill_peak_share].into_iter().enumerate() {
            let y = y + BAR * which as i32;
            let bar = [(left, y), (x(share.unwrap_or(0.0)), y + BAR - 1)];
            root.draw(&Rectangle::new(bar, COLOURS[which].filled()))?;
            let text =
                share.map_or_else(|| "not known".to_owned(), |share| format!("{:.1} %", 100.0 * share));
            root.draw(&Text::new(text, (bar[1].0 + 4, y + BAR / 2), style(11, HPos::Left)))?;
        }
    }
    root.present()?;
    Ok(())
}

/// A line a row: the time of so many rows over that of one token.
///
/// # Errors
/// When it cannot be drawn.
pub fn batches(rows: &[Row]) -> Result<String> {
    drawn(|svg| draw_batches(svg, rows))
}

fn draw_batches(svg: &mut String, rows: &[Row]) -> Drawn {
    let root = SVGBackend::with_string(svg, (WIDTH, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new("The NPU's time of small batches, modelled", (24, 20), style(18, HPos::Left)))?;
    let most =
        rows.iter().flat_map(|row| row.rows_ratio.values()).fold(1.0f64, |most, ratio| most.max(*ratio));
    let body = root.margin(40, 10, 10, 24);
    let mut chart = ChartBuilder::on(&body)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d((1.0..16.0).log_scale().base(2.0), 0.0..1.1 * most)?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(245, 245, 245))
        .bold_line_style(RGBColor(220, 220, 220))
        .axis_style(BLACK)
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 15))
        .x_label_formatter(&|rows| format!("{rows}"))
        .x_desc("rows of the batch")
        .y_desc("time / time of one token")
        .draw()?;
    for (at, row) in rows.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let mut points = vec![(1.0, 1.0)];
        points.extend(row.rows_ratio.iter().map(|(rows, ratio)| (f64::from(*rows), *ratio)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        chart
            .draw_series([PathElement::new(points, colour.stroke_width(2))])?
            .label(row.label())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 12))
        .background_style(WHITE)
        .border_style(RGBColor(220, 220, 220))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    fn texts(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).expect("the picture is XML");
        let texts = document.descendants().filter(|node| node.has_tag_name("text"));
        texts.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
    }

    #[test]
    fn every_row_is_in_both_pictures_with_modelled_in_their_titles() {
        let rows = [row("a<b", Some(0.456)), row("c", None), row("d", Some(1.02))];
        for svg in [shares(&rows).unwrap(), batches(&rows).unwrap()] {
            let texts = texts(&svg);
            assert!(texts[0].contains("modelled"), "{texts:?}");
            for label in ["a<b Q8_0", "c Q8_0", "d Q8_0"] {
                assert!(texts.iter().any(|text| text == label), "{label}: {texts:?}");
            }
        }
        let texts = texts(&shares(&rows).unwrap());
        for figure in ["45.6 %", "22.8 %", "not known", "102.0 %"] {
            assert!(texts.iter().any(|text| text == figure), "{figure}: {texts:?}");
        }
    }
}
