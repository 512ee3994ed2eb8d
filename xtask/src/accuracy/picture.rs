//! The picture: divergence, on a log axis, against bytes a weight; the CPU's points are discs, the NPU's triangles.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::labels::{self, Area};
use super::rows::Row;
use crate::error::{Error, Result};

const SIZE: (u32, u32) = (1000, 680);
const CPU: RGBColor = RGBColor(0, 92, 148);
const NPU: RGBColor = RGBColor(200, 80, 0);
const FONT: &str = "sans-serif";
/// The size of the labels' letters, and how wide one is in the mean: no font is at hand to ask.
const LETTERS: i32 = 12;
const LETTER_WIDTH: f64 = 6.6;
/// The least divergence that the host's six digits can tell from none.
const LEAST: f64 = 1e-6;

/// A picture that was drawn.
pub struct Drawn {
    /// The SVG file's content.
    pub svg: String,
    /// Labels of rows that have no place in it for want of their bytes a weight.
    pub left_out: Vec<String>,
}

/// Draws the rows.
///
/// # Errors
/// When no row has bytes a weight.
pub fn svg(rows: &[Row]) -> Result<Drawn> {
    let names = Names::of(rows);
    let (drawn, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.bytes_per_weight.is_some());
    let points: Vec<Point> = drawn.iter().filter_map(|row| Point::of(row, &names)).collect();
    if points.is_empty() {
        return Err(Error::Refused(
            "--picture: no row has bytes a weight; measure with a plugin whose report has npu_bytes"
                .to_owned(),
        ));
    }
    let mut svg = String::new();
    draw(&mut svg, &points, &caption(rows, &names))
        .map_err(|error| Error::Refused(format!("--picture: cannot draw: {error}")))?;
    Ok(Drawn { svg, left_out: others.into_iter().map(|row| names.label(row)).collect() })
}

/// One row in the picture.
struct Point {
    label: String,
    is_cpu: bool,
    bytes: f64,
    kl: f64,
}

impl Point {
    fn of(row: &Row, names: &Names) -> Option<Self> {
        // No divergence has no place on a log axis: it stands on its lower end, and says so.
        let zero = if row.kl < LEAST { " (KL 0)" } else { "" };
        let label = names.label(row) + zero;
        Some(Self { label, is_cpu: row.is_cpu(), bytes: row.bytes_per_weight?, kl: row.kl })
    }
}

/// What the names of all files have in common is said once, not at each point.
struct Names {
    common: String,
    /// Whether the file is the same everywhere.
    is_one: bool,
}

impl Names {
    fn of(rows: &[Row]) -> Self {
        let first = rows.first().map_or("", |row| row.model.as_str());
        let is_one = rows.iter().all(|row| row.model == first);
        let mut common = first;
        for row in rows {
            let same = common.chars().zip(row.model.chars()).take_while(|(a, b)| a == b);
            let length = same.map(|(letter, _)| letter.len_utf8()).sum();
            common = &common[..length];
        }
        // A name is cut between its parts only.
        let cut = if is_one { common.len() } else { common.rfind(['.', '-']).map_or(0, |at| at + 1) };
        Self { common: common[..cut].to_owned(), is_one }
    }

    fn label(&self, row: &Row) -> String {
        if self.is_one {
            return row.on.clone();
        }
        format!("{} {}", row.model.strip_prefix(self.common.as_str()).unwrap_or(&row.model), row.on)
    }
}

fn caption(rows: &[Row], names: &Names) -> String {
    let same = |of: fn(&Row) -> Option<String>| {
        let first = rows.first().and_then(of)?;
        rows.iter().all(|row| of(row).as_ref() == Some(&first)).then_some(first)
    };
    let model = names.common.trim_end_matches(['.', '-']);
    let mut parts = vec![model.to_owned()];
    parts.extend(
        same(|row| row.reference.clone()).map(|reference| format!("reference {reference} on the CPU")),
    );
    parts.extend(same(|row| row.chunks.map(|chunks| format!("{chunks} chunks of 512 tokens"))));
    parts.retain(|part| !part.is_empty());
    parts.join(" · ")
}

/// The ends of the axis of divergence: whole decades.
fn decades(points: &[Point]) -> (f64, f64) {
    let seen = || points.iter().map(|point| point.kl).filter(|kl| *kl >= LEAST);
    let (least, most) = (seen().fold(f64::INFINITY, f64::min), seen().fold(0.0, f64::max));
    if most == 0.0 {
        return (LEAST, 1.0);
    }
    let mut low = 10f64.powf(least.log10().floor());
    // The lower end is kept for those without divergence.
    if points.iter().any(|point| point.kl < LEAST) && least < 2.0 * low {
        low /= 10.0;
    }
    let high = 10f64.powf(most.log10().ceil());
    (low, if high > low * 1.5 { high } else { low * 10.0 })
}

fn draw(
    svg: &mut String,
    points: &[Point],
    caption: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    heading(&root, caption)?;
    let (low, high) = decades(points);
    let most = points.iter().map(|point| point.bytes).fold(0.0, f64::max);
    let body = root.margin(56, 10, 10, 24);
    let mut chart = ChartBuilder::on(&body)
        .x_label_area_size(46)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..most * 1.12, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(210, 210, 210))
        .axis_style(BLACK)
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 15))
        .max_light_lines(4)
        .x_labels(12)
        .x_label_formatter(&|bytes| format!("{bytes:.2}"))
        .y_label_formatter(&|kl| power(*kl))
        .x_desc("bytes per weight")
        .y_desc("KL divergence to the reference")
        .draw()?;

    let places: Vec<(i32, i32)> =
        points.iter().map(|point| chart.backend_coord(&(point.bytes, point.kl.max(low)))).collect();
    let (across, down) = chart.plotting_area().get_pixel_range();
    let plot = Area {
        left: across.start,
        top: down.start,
        width: across.end - across.start,
        height: down.end - down.start,
    };
    let widths: Vec<i32> = points
        .iter()
        .map(|point| (point.label.chars().count() as f64 * LETTER_WIDTH).ceil() as i32 + 4)
        .collect();
    let spots = labels::place(plot, &places, &widths);
    for (from, spot) in places.iter().zip(&spots) {
        if let Some(to) = spot.lead {
            root.draw(&PathElement::new([*from, to], RGBColor(150, 150, 150)))?;
        }
    }
    for (point, at) in points.iter().zip(&places) {
        marker(&root, *at, point.is_cpu)?;
    }
    for (point, spot) in points.iter().zip(&spots) {
        let style = (FONT, LETTERS).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        let at = (spot.area.left + 2, spot.area.top + labels::HEIGHT / 2);
        root.draw(&Text::new(point.label.clone(), at, style))?;
    }
    root.present()?;
    Ok(())
}

/// The title, what was measured, and what the two markers are.
fn heading(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let left = Pos::new(HPos::Left, VPos::Center);
    let style = |size: i32| (FONT, size).into_font().color(&BLACK).pos(left);
    root.draw(&Text::new("Accuracy against size", (24, 20), style(18)))?;
    root.draw(&Text::new(caption.to_owned(), (24, 42), style(13)))?;
    for (x, is_cpu, text) in [(780, true, "on the CPU"), (890, false, "on the NPU")] {
        marker(root, (x, 20), is_cpu)?;
        root.draw(&Text::new(text, (x + 12, 20), style(13)))?;
    }
    Ok(())
}

fn marker(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    at: (i32, i32),
    is_cpu: bool,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    if is_cpu {
        root.draw(&Circle::new(at, 5, CPU.filled()))?;
    } else {
        root.draw(&TriangleMarker::new(at, 7, NPU.filled()))?;
    }
    Ok(())
}

/// A power of ten as people write it.
fn power(value: f64) -> String {
    if value >= 0.001 {
        format!("{value}")
    } else {
        format!("{value:.0e}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    fn texts(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).expect("the picture is XML");
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let texts = document.descendants().filter(|node| node.has_tag_name("text"));
        texts.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
    }

    fn count(svg: &str, tag: &str) -> usize {
        let document = roxmltree::Document::parse(svg).expect("the picture is XML");
        document.descendants().filter(|node| node.has_tag_name(tag)).count()
    }

    #[test]
    fn every_row_has_its_label_and_marker() {
        let rows = [
            row("Smol-135M.F16", "CPU", 0.0, Some(2.0)),
            row("Smol-135M.F16", "default", 0.000003, Some(2.0)),
            row("Smol-135M.Q8_0", "CPU", 0.0043, Some(1.0625)),
            row("Smol-135M.Q8_0", "W8A8_HADAMARD", 0.0051, Some(1.01)),
            row("Smol-135M.Q8_0", "W4A4", 0.7, None),
        ];
        let Drawn { svg, left_out } = super::svg(&rows).unwrap();
        let texts = texts(&svg);
        for label in ["F16 CPU (KL 0)", "F16 default", "Q8_0 CPU", "Q8_0 W8A8_HADAMARD"] {
            assert!(texts.iter().any(|text| text == label), "{label}: {texts:?}");
        }
        for text in ["bytes per weight", "KL divergence to the reference", "on the CPU", "on the NPU"] {
            assert!(texts.iter().any(|have| have == text), "{text}: {texts:?}");
        }
        let caption = "Smol-135M · reference f16 on the CPU · 20 chunks of 512 tokens";
        assert!(texts.iter().any(|text| text == caption), "{texts:?}");
        assert_eq!(left_out, ["Q8_0 W4A4"]);
        // Two of each, and one of each in the legend.
        assert_eq!((count(&svg, "circle"), count(&svg, "polygon")), (3, 3), "{svg}");
        let document = roxmltree::Document::parse(&svg).unwrap();
        let ground = document.descendants().find(|node| node.has_tag_name("rect")).unwrap();
        assert_eq!(ground.attribute("fill"), Some("#FFFFFF"), "a ground of its own, for dark viewers");
        assert_eq!(ground.attribute("width"), Some("1000"));
    }

    #[test]
    fn names_from_files_are_escaped() {
        let rows = [row("a<b&\"c", "CPU", 0.1, Some(1.0)), row("<x>", "W8A8", 0.2, Some(1.0))];
        let texts = texts(&svg(&rows).unwrap().svg);
        assert!(texts.iter().any(|text| text == "a<b&\"c CPU"), "{texts:?}");
    }

    #[test]
    fn without_any_size_there_is_no_picture() {
        let error = svg(&[row("m", "W8A8", 0.1, None)]).err().unwrap().to_string();
        assert!(error.contains("npu_bytes"), "{error}");
    }

    #[test]
    fn only_what_names_have_in_common_is_left_out_of_labels() {
        let label = |models: &[&str]| {
            let rows: Vec<Row> = models.iter().map(|model| row(model, "W8A8", 0.1, Some(1.0))).collect();
            let names = Names::of(&rows);
            rows.iter().map(|row| names.label(row)).collect::<Vec<_>>()
        };
        assert_eq!(label(&["a.Q4_0", "a.Q4_K_M"]), ["Q4_0 W8A8", "Q4_K_M W8A8"]);
        assert_eq!(label(&["a", "a.Q8_0"]), ["a W8A8", "a.Q8_0 W8A8"]);
        assert_eq!(label(&["größe.é", "größe.è"]), ["é W8A8", "è W8A8"]);
        assert_eq!(label(&["one", "one"]), ["W8A8", "W8A8"]);
    }

    #[test]
    fn the_axis_of_divergence_spans_whole_decades() {
        let ends = |kls: &[f64]| {
            let points: Vec<Point> = kls
                .iter()
                .map(|kl| Point { label: String::new(), is_cpu: true, bytes: 1.0, kl: *kl })
                .collect();
            let (low, high) = decades(&points);
            (power(low), power(high))
        };
        let text = |low: &str, high: &str| (low.to_owned(), high.to_owned());
        assert_eq!(ends(&[0.0043, 0.31]), text("0.001", "1"));
        assert_eq!(ends(&[0.0, 0.0011]), text("1e-4", "0.01"));
        assert_eq!(ends(&[-0.0]), text("1e-6", "1"));
        assert_eq!(ends(&[0.05]), text("0.01", "0.1"));
        assert_eq!(ends(&[1.0]), text("1", "10"));
    }
}
