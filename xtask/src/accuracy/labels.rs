//! Where the labels of a picture's points go, so that they cover neither each other nor a point. Pixels, y downwards.

/// The height of a label's box.
pub const HEIGHT: i32 = 14;
/// Half the side of the square around a point that labels keep off.
const MARKER: i32 = 7;
/// How far from its point a label may be, nearest first.
const DISTANCES: [i32; 9] = [10, 20, 32, 46, 62, 80, 100, 122, 146];
/// Beyond this a line leads from the point to its label.
const NEAR: i32 = 10;

/// A box, its right and lower edges excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// The left edge.
    pub left: i32,
    /// The upper edge.
    pub top: i32,
    /// The width.
    pub width: i32,
    /// The height.
    pub height: i32,
}

impl Area {
    fn around((x, y): (i32, i32)) -> Self {
        Self { left: x - MARKER, top: y - MARKER, width: 2 * MARKER, height: 2 * MARKER }
    }

    /// Whether the two share a pixel.
    pub fn overlaps(self, other: Self) -> bool {
        self.left < other.left + other.width
            && other.left < self.left + self.width
            && self.top < other.top + other.height
            && other.top < self.top + self.height
    }

    fn holds(self, other: Self) -> bool {
        self.left <= other.left
            && other.left + other.width <= self.left + self.width
            && self.top <= other.top
            && other.top + other.height <= self.top + self.height
    }
}

/// Where a label goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The label's box.
    pub area: Area,
    /// The end of the line that leads from the point to the label, if the label is not right beside it.
    pub lead: Option<(i32, i32)>,
}

/// Places a label of each width at its point, inside of `plot`. A label that fits nowhere goes beside its point.
pub fn place(plot: Area, points: &[(i32, i32)], widths: &[i32]) -> Vec<Place> {
    let markers: Vec<Area> = points.iter().map(|point| Area::around(*point)).collect();
    let mut placed: Vec<Place> = Vec::with_capacity(points.len());
    for (point, width) in points.iter().zip(widths) {
        let is_free = |place: &Place| {
            plot.holds(place.area)
                && !markers.iter().any(|marker| marker.overlaps(place.area))
                && !placed.iter().any(|other| other.area.overlaps(place.area))
        };
        let mut all = DISTANCES.into_iter().flat_map(|distance| candidates(*point, *width, distance));
        let place = all.find(is_free).unwrap_or_else(|| candidates(*point, *width, NEAR)[0]);
        placed.push(place);
    }
    placed
}

/// The places at a distance from a point, the best first: right, left, above, below, and the slants between.
fn candidates((x, y): (i32, i32), width: i32, distance: i32) -> [Place; 8] {
    let (right, left, middle) = (x + distance, x - distance - width, x - width / 2);
    let (beside, above, below) = (y - HEIGHT / 2, y - distance - HEIGHT, y + distance);
    let slant = distance * 7 / 10;
    let (slant_right, slant_left) = (x + slant, x - slant - width);
    let (slant_above, slant_below) = (y - slant - HEIGHT, y + slant);
    [
        (right, beside),
        (left, beside),
        (slant_right, slant_above),
        (slant_right, slant_below),
        (slant_left, slant_above),
        (slant_left, slant_below),
        (middle, above),
        (middle, below),
    ]
    .map(|(left, top)| {
        let area = Area { left, top, width, height: HEIGHT };
        let end = (x.clamp(left, left + width), y.clamp(top, top + HEIGHT));
        Place { area, lead: (distance > NEAR).then_some(end) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLOT: Area = Area { left: 50, top: 20, width: 700, height: 500 };

    fn assert_apart(points: &[(i32, i32)], places: &[Place]) {
        for (i, place) in places.iter().enumerate() {
            assert!(PLOT.holds(place.area), "{place:?}");
            assert!(points.iter().all(|point| !Area::around(*point).overlaps(place.area)), "{place:?}");
            assert!(places[i + 1..].iter().all(|other| !other.area.overlaps(place.area)), "{place:?}");
        }
    }

    #[test]
    fn a_lone_label_is_right_of_its_point_and_at_the_edge_left_of_it() {
        let places = place(PLOT, &[(300, 200), (740, 400)], &[60, 60]);
        assert_eq!(places[0].area, Area { left: 310, top: 193, width: 60, height: 14 });
        assert_eq!(places[1].area.left, 740 - 10 - 60);
        assert!(places.iter().all(|place| place.lead.is_none()));
    }

    #[test]
    fn labels_of_a_crowd_stay_apart() {
        // Six columns' worth of points at nearly the same place, as pipelines of the same width are.
        let points: Vec<(i32, i32)> = (0..14).map(|i| (400 + i % 3, 250 + i * 4)).collect();
        let places = place(PLOT, &points, &[110; 14]);
        assert_apart(&points, &places);
        assert!(places.iter().any(|place| place.lead.is_some()));
    }

    #[test]
    fn a_label_that_fits_nowhere_is_still_placed() {
        let tiny = Area { left: 0, top: 0, width: 30, height: 30 };
        assert_eq!(place(tiny, &[(15, 15)], &[100])[0].area.left, 25);
    }
}
