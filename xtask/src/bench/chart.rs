//! The report's pictures: how far each row is from its target, and each row's bars.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::table::{Earlier, Row, earlier, number};
use super::targets::Bound;
use crate::scale::chart::{Area, FAINT, GRID, INK, SMALL, TEXT, in_words, write_text};

const WIDTH: i32 = 960;
const OURS: RGBColor = RGBColor(0x0b, 0x4f, 0x8a);
const THEIRS: RGBColor = RGBColor(0xd9, 0x9a, 0x5b);
const LIMIT: RGBColor = RGBColor(0xb3, 0x26, 0x1e);
const HOLDS: RGBColor = RGBColor(0x1d, 0x7a, 0x3d);

/// A canvas, what is drawn on it, and it as text.
fn svg(height: i32, draw: impl FnOnce(&Area<'_>) -> Result<(), String>) -> Result<String, String> {
    let mut text = String::new();
    let size = (WIDTH as u32, height as u32);
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    area.fill(&WHITE).map_err(in_words)?;
    draw(&area)?;
    area.present().map_err(in_words)?;
    drop(area);
    Ok(text)
}

fn rectangle(
    area: &Area<'_>,
    from: (i32, i32),
    to: (i32, i32),
    ink: RGBColor,
) -> Result<(), String> {
    area.draw(&Rectangle::new([from, to], ink.filled()))
        .map_err(in_words)
}

fn line(
    area: &Area<'_>,
    from: (i32, i32),
    to: (i32, i32),
    ink: RGBColor,
    width: u32,
) -> Result<(), String> {
    let style = ink.stroke_width(width);
    area.draw(&PathElement::new(vec![from, to], style))
        .map_err(in_words)
}

/// Ratio over target for each row that was measured, on a logarithmic scale: left of the middle holds.
pub(super) fn overview(rows: &[Row]) -> Result<String, String> {
    const LINE: i32 = 20;
    const TOP: i32 = 56;
    const NAMES: i32 = 380;
    const NUMBERS: i32 = 150;
    /// Powers of two to either side.
    const REACH: f64 = 5.0;
    let measured: Vec<(&Row, f64)> = rows
        .iter()
        .filter_map(|row| Some((row, row.share()?)))
        .collect();
    let (left, right) = (NAMES, WIDTH - NUMBERS);
    let x = |share: f64| {
        let place = (share.log2().clamp(-REACH, REACH) + REACH) / (2.0 * REACH);
        left + (place * f64::from(right - left)).round() as i32
    };
    let bottom = TOP + measured.len() as i32 * LINE;
    svg(bottom + 10, |area| {
        let title =
            "Ratio to the peer, over the target: what ends to the left of 1 holds (log scale)";
        write_text(area, title, (8, 14), TEXT, INK, HPos::Left)?;
        for power in [-4, -2, 0, 2, 4] {
            let at = x(f64::from(power).exp2());
            let (ink, width) = if power == 0 { (INK, 2) } else { (GRID, 1) };
            line(area, (at, TOP - 4), (at, bottom), ink, width)?;
            let label = if power < 0 {
                format!("1/{}", 1 << -power)
            } else {
                format!("{}", 1 << power)
            };
            write_text(area, &label, (at, TOP - 16), SMALL, FAINT, HPos::Center)?;
        }
        for (number, (row, share)) in measured.iter().enumerate() {
            let middle = TOP + number as i32 * LINE + LINE / 2;
            let ink = if *share <= 1.0 { HOLDS } else { LIMIT };
            let name = format!(
                "{}, {} thr, {}",
                row.target.id, row.target.threads, row.peer
            );
            write_text(area, &name, (left - 12, middle), SMALL, INK, HPos::Right)?;
            let (one, end) = (x(1.0), x(*share));
            rectangle(
                area,
                (one.min(end), middle - 4),
                (one.max(end), middle + 4),
                ink,
            )?;
            let words = format!(
                "{:.2} x, {}",
                row.ratio.unwrap_or(0.0),
                row.bound_in_words()
            );
            write_text(area, &words, (right + 12, middle), SMALL, ink, HPos::Left)?;
        }
        Ok(())
    })
}

/// Ours and its peers as bars on one linear scale from zero. `rows` have one identifier and number of threads.
pub(super) fn bars(rows: &[&Row], before: Option<&[Earlier]>) -> Result<String, String> {
    const LINE: i32 = 24;
    const BAR: i32 = 8;
    const LEFT: i32 = 190;
    const NUMBERS: i32 = 240;
    let first = rows[0];
    let mut bars: Vec<(&str, Option<f64>, Option<&Row>)> = vec![("ours", first.ours_ns, None)];
    for row in rows {
        // The ratio is to the best of several.
        let judged = |name: &str| (name == row.peer).then_some(*row);
        bars.extend(
            row.peers
                .iter()
                .map(|(name, ns)| (name.as_str(), *ns, judged(name))),
        );
    }
    let longest = bars
        .iter()
        .filter_map(|bar| bar.1)
        .chain(first.limit_ns)
        .fold(0.0, f64::max);
    let x = |ns: f64| {
        LEFT + (ns / longest.max(f64::MIN_POSITIVE) * f64::from(WIDTH - LEFT - NUMBERS)).round()
            as i32
    };
    let height = bars.len() as i32 * LINE + 8;
    svg(height, |area| {
        for (number_of_bar, (name, ns, row)) in bars.iter().enumerate() {
            let middle = number_of_bar as i32 * LINE + LINE / 2 + 2;
            write_text(area, name, (LEFT - 8, middle), TEXT, INK, HPos::Right)?;
            let Some(ns) = *ns else {
                write_text(
                    area,
                    "not measured",
                    (LEFT + 6, middle),
                    TEXT,
                    FAINT,
                    HPos::Left,
                )?;
                continue;
            };
            let (end, ink) = (
                x(ns).max(LEFT + 1),
                if number_of_bar == 0 { OURS } else { THEIRS },
            );
            rectangle(area, (LEFT, middle - BAR), (end, middle + BAR), ink)?;
            let value = format!("{} {}", number(Some(ns)), first.target.unit);
            let words = match row.and_then(|row| Some((row, row.ratio?, row.holds()?))) {
                None => value,
                Some((row, ratio, true)) => {
                    format!("{value}; {ratio:.2} x, {}", row.bound_in_words())
                }
                Some((row, ratio, false)) => {
                    format!("{value}; {ratio:.2} x, not {}", row.bound_in_words())
                }
            };
            let ink = if row.is_some_and(|row| row.holds() == Some(false)) {
                LIMIT
            } else {
                INK
            };
            write_text(area, &words, (end + 8, middle), TEXT, ink, HPos::Left)?;
            if let Some(row) = row
                && let Bound::AtMost(most) = row.target.bound
                && most <= 1.0
            {
                let at = x(ns * most);
                line(area, (at, middle - BAR), (at, middle + BAR), INK, 2)?;
            }
        }
        if let Some(limit) = first.limit_ns.filter(|_| longest > 0.0) {
            line(area, (x(limit), 0), (x(limit), height), LIMIT, 2)?;
        }
        let then = before
            .and_then(|rows| earlier(rows, first))
            .and_then(|e| e.ours_ns);
        if let Some(then) = then.filter(|then| *then <= longest) {
            line(area, (x(then), 2), (x(then), LINE + 2), FAINT, 3)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::rows;
    use super::*;

    /// As plotters writes a colour.
    fn ink(color: RGBColor) -> String {
        format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2)
    }

    #[test]
    fn bars_show_the_limit_where_it_was_measured_and_say_what_was_not() {
        let rows = rows();
        let svg = bars(&[&rows[0]], None).unwrap();
        assert!(
            svg.contains("<svg") && svg.contains("4.00 ns; 0.50 x, at most 0.60"),
            "{svg}"
        );
        assert!(svg.contains(&ink(LIMIT)) && !svg.contains("not measured"));
        let svg = bars(&[&rows[2]], None).unwrap();
        assert!(svg.contains("not measured") && !svg.contains("NaN"));
    }

    #[test]
    fn an_earlier_run_is_marked() {
        let rows = rows();
        let before = super::super::table::from_json(&super::super::table::json(&rows)).unwrap();
        let (without, with) = (
            bars(&[&rows[0]], None).unwrap(),
            bars(&[&rows[0]], Some(&before)).unwrap(),
        );
        assert!(with.matches(&ink(FAINT)).count() > without.matches(&ink(FAINT)).count());
    }

    #[test]
    fn the_overview_has_a_line_a_measured_row() {
        let svg = overview(&rows()).unwrap();
        assert_eq!(svg.matches(" x, at ").count(), 2);
        assert!(overview(&[]).unwrap().contains("<svg"));
    }
}
