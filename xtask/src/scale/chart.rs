//! The report's two pictures, as SVG text: what an object costs, and what waits to be freed.
//!
//! *Why bars by hand*: bars lie on their side with the engine's name to the left and the number to the right, so
//! that nothing overlaps at any count of workloads. The charts of plotters know no such layout; its drawing calls
//! are enough.
//! *Why logarithms*: the cheapest engine and the dearest are two orders of magnitude apart, and both must be
//! readable.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::options::Engine;
use super::table::Row;

const WIDTH: u32 = 960;
pub(crate) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub(crate) const FAINT: RGBColor = RGBColor(0x77, 0x77, 0x77);
pub(crate) const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);

/// plotters writes a font at 1/1.24 of the size it is given; these come out as 13, 12 and 15 pixels.
pub(crate) const TEXT: f64 = 13.0 * 1.24;
pub(crate) const SMALL: f64 = 12.0 * 1.24;
const HEADING: f64 = 15.0 * 1.24;

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Blue for batched kvfree, one hue for every other: the two lines of the memory picture must not be taken for each
/// other.
fn color(engine: Engine) -> RGBColor {
    match engine {
        Engine::Kvfree => RGBColor(0x0b, 0x4f, 0x8a),
        Engine::KvfreeHeadless => RGBColor(0x3f, 0x8f, 0xcb),
        Engine::KvfreeSized => RGBColor(0x5f, 0xa4, 0xd6),
        Engine::KvfreeBox => RGBColor(0x7f, 0xb8, 0xe0),
        Engine::KvfreeUnbatched => RGBColor(0x8e, 0x6b, 0xb8),
        Engine::MallocFree | Engine::Mimalloc | Engine::RustyAlloc => RGBColor(0x99, 0x99, 0x99),
        Engine::CrossbeamEpoch => RGBColor(0xd9, 0x7b, 0x29),
        Engine::Kovan => RGBColor(0x3a, 0x96, 0x5a),
    }
}

pub(crate) fn write_text(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: f64,
    ink: RGBColor,
    anchor: HPos,
) -> Result<(), String> {
    let style = ("sans-serif", size)
        .into_font()
        .color(&ink)
        .pos(Pos::new(anchor, VPos::Center));
    area.draw_text(text, &style, at).map_err(in_words)
}

pub(crate) fn in_words(error: impl Display) -> String {
    error.to_string()
}

/// A logarithmic scale from values to pixels.
struct LogScale {
    values: Range<f64>,
    pixels: Range<i32>,
}

impl LogScale {
    /// Starts at a power of ten well below the smallest value, so that its bar is still seen.
    fn around(values: impl Iterator<Item = f64> + Clone, pixels: Range<i32>) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        let low = 10f64.powf((least / 1.5).log10().floor());
        Self {
            values: low..(most * 1.1).max(low * 10.0),
            pixels,
        }
    }

    fn pixel(&self, value: f64) -> i32 {
        let whole = (self.values.end / self.values.start).log10();
        let share = (value / self.values.start).log10() / whole;
        let pixels = f64::from(self.pixels.end - self.pixels.start);
        self.pixels.start + (share * pixels).round() as i32
    }

    /// 1, 2 and 5 of every decade.
    fn ticks(&self) -> Vec<f64> {
        let first = self.values.start.log10().round() as i32;
        let last = self.values.end.log10().floor() as i32;
        let all = (first..=last).flat_map(|decade| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(decade)));
        all.filter(|tick| *tick <= self.values.end).collect()
    }
}

/// ns per object of each row as a bar, grouped by workload and threads.
pub(crate) fn bars(rows: &[Row]) -> Result<String, String> {
    const LINE: i32 = 23;
    const BAR: i32 = 15;
    const GROUP_GAP: i32 = 34;
    const TOP: i32 = 46;
    const NAMES: i32 = 170;
    const NUMBERS: i32 = 60;

    let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in rows {
        let label = row.group_label();
        match groups.iter_mut().find(|group| group.0 == label) {
            Some(group) => group.1.push(row),
            None => groups.push((label, vec![row])),
        }
    }
    let bottom = TOP + groups.len() as i32 * GROUP_GAP + rows.len() as i32 * LINE;
    let scale = LogScale::around(
        rows.iter().map(|row| row.run.ns_per_object),
        NAMES..WIDTH as i32 - NUMBERS,
    );

    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, bottom as u32 + 14)).into_drawing_area();
    area.fill(&WHITE).map_err(in_words)?;
    let title = "ns per object, until the last one is free (log scale, shorter is better)";
    write_text(&area, title, (NAMES, 12), TEXT, INK, HPos::Left)?;
    for tick in scale.ticks() {
        let x = scale.pixel(tick);
        let line = PathElement::new(vec![(x, TOP - 4), (x, bottom)], GRID);
        area.draw(&line).map_err(in_words)?;
        let label = number(tick);
        write_text(&area, &label, (x, TOP - 14), SMALL, FAINT, HPos::Center)?;
    }
    let mut y = TOP;
    for (label, rows) in &groups {
        let middle = y + GROUP_GAP - 12;
        write_text(&area, label, (8, middle), HEADING, INK, HPos::Left)?;
        y += GROUP_GAP;
        for row in rows {
            let middle = y + LINE / 2;
            let name = row.engine.name();
            write_text(&area, name, (NAMES - 8, middle), TEXT, INK, HPos::Right)?;
            let end = scale.pixel(row.run.ns_per_object).max(NAMES + 1);
            let corners = [(NAMES, middle - BAR / 2), (end, middle + BAR / 2 + 1)];
            let bar = Rectangle::new(corners, color(row.engine).filled());
            area.draw(&bar).map_err(in_words)?;
            let cost = format!("{:.1}", row.run.ns_per_object);
            write_text(&area, &cost, (end + 6, middle), TEXT, INK, HPos::Left)?;
            y += LINE;
        }
    }
    area.present().map_err(in_words)?;
    drop(area);
    Ok(svg)
}

/// Retired-but-not-freed memory over time, one line a row. `None` when no row has a sample.
pub(crate) fn memory(rows: &[&Row]) -> Result<Option<String>, String> {
    const HEIGHT: u32 = 400;
    const LEGEND: u32 = 34;

    let lines: Vec<(Engine, Vec<(f64, f64)>)> = rows
        .iter()
        .map(|row| (row.engine, thinned(&row.run.samples)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE).map_err(in_words)?;
    let (legend, plot) = area.split_vertically(LEGEND);
    let mut x = 94;
    for (engine, _) in &lines {
        let swatch = PathElement::new(vec![(x, 16), (x + 26, 16)], color(*engine).stroke_width(3));
        legend.draw(&swatch).map_err(in_words)?;
        let name = engine.name();
        write_text(&legend, name, (x + 34, 16), TEXT, INK, HPos::Left)?;
        x += 200;
    }
    let time = Axis::of(lines.iter().map(|(_, points)| points), |point| point.0);
    let size = Axis::of(lines.iter().map(|(_, points)| points), |point| point.1);
    match (time.log, size.log) {
        (false, false) => trace_lines(&plot, time.range(), size.range(), &time, &size, &lines),
        (false, true) => {
            let sizes = size.range().log_scale();
            trace_lines(&plot, time.range(), sizes, &time, &size, &lines)
        }
        (true, false) => {
            let times = time.range().log_scale();
            trace_lines(&plot, times, size.range(), &time, &size, &lines)
        }
        (true, true) => {
            let (times, sizes) = (time.range().log_scale(), size.range().log_scale());
            trace_lines(&plot, times, sizes, &time, &size, &lines)
        }
    }?;
    area.present().map_err(in_words)?;
    drop((legend, plot, area));
    Ok(Some(svg))
}

/// Where an axis begins and ends, and whether it needs a logarithm to show the smaller line at all.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// Lines whose ends are this many times apart share no linear axis.
    const APART: f64 = 6.0;

    fn of<'l>(
        lines: impl Iterator<Item = &'l Vec<(f64, f64)>>,
        value: impl Fn(&(f64, f64)) -> f64,
    ) -> Self {
        let mut peaks = Vec::new();
        let mut least = f64::INFINITY;
        for line in lines {
            peaks.push(line.iter().map(&value).fold(0.0, f64::max));
            let above_zero = line.iter().map(&value).filter(|v| *v > 0.0);
            least = above_zero.fold(least, f64::min);
        }
        let high = peaks.iter().copied().fold(0.0, f64::max).max(1e-3);
        let lowest_peak = peaks.into_iter().filter(|p| *p > 0.0).fold(high, f64::min);
        let log = high / lowest_peak >= Self::APART;
        let low = if log {
            // Four decades show a shape; more show only its first microseconds.
            10f64.powf(least.max(lowest_peak / 1e3).log10().floor())
        } else {
            0.0
        };
        Self { low, high, log }
    }

    fn range(&self) -> Range<f64> {
        let room = if self.log { 1.5 } else { 1.05 };
        self.low..self.high * room
    }

    fn title(&self, what: &str) -> String {
        let scale = if self.log { ", log scale" } else { "" };
        format!("{what}{scale}")
    }
}

fn trace_lines<X, Y>(
    area: &Area<'_>,
    x: X,
    y: Y,
    time: &Axis,
    size: &Axis,
    lines: &[(Engine, Vec<(f64, f64)>)],
) -> Result<(), String>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin_left(14)
        .margin_right(30)
        .margin_bottom(6)
        .x_label_area_size(44)
        .y_label_area_size(80)
        .build_cartesian_2d(x, y)
        .map_err(in_words)?;
    let label = ("sans-serif", SMALL).into_font().color(&FAINT);
    let title = ("sans-serif", TEXT).into_font().color(&INK);
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .label_style(label)
        .axis_desc_style(title)
        .x_desc(time.title("ms since the start"))
        .y_desc(size.title("KiB retired, not yet freed"))
        .x_label_formatter(&|v| number(*v))
        .y_label_formatter(&|v| number(*v))
        .draw()
        .map_err(in_words)?;
    for (engine, points) in lines {
        let seen = points
            .iter()
            .map(|(ms, kib)| (ms.max(time.low), kib.max(size.low)));
        let line = LineSeries::new(seen, color(*engine).stroke_width(2));
        chart.draw_series(line).map_err(in_words)?;
    }
    Ok(())
}

/// At most two thousand points, peaks and dips kept: of each stretch the least and the most, in their order.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const STRETCHES: usize = 1000;
    if points.len() <= 2 * STRETCHES {
        return points.to_vec();
    }
    let mut thin = Vec::with_capacity(2 * STRETCHES);
    for stretch in points.chunks(points.len().div_ceil(STRETCHES)) {
        let by_size = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (Some(least), Some(most)) = (
            stretch.iter().min_by(by_size),
            stretch.iter().max_by(by_size),
        ) else {
            continue;
        };
        let (first, second) = if least.0 <= most.0 {
            (least, most)
        } else {
            (most, least)
        };
        thin.push(*first);
        if second != first {
            thin.push(*second);
        }
    }
    thin
}

/// A tick's label: no more digits than it needs, thousands apart.
fn number(value: f64) -> String {
    if value.abs() < 1.0 && value != 0.0 {
        let digits = format!("{value:.3}");
        return digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned();
    }
    let whole = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::row;
    use super::*;

    #[test]
    fn numbers_are_short() {
        let labels = [0.0, 0.05, 0.5, 3.0, 999.0, 1000.0, 1234567.0].map(number);
        assert_eq!(
            labels,
            ["0", "0.05", "0.5", "3", "999", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn every_bar_lies_inside_the_picture() {
        let scale = LogScale::around([0.4, 3.0, 900.0].into_iter(), 100..900);
        assert!(scale.pixel(0.4) > 100 && scale.pixel(900.0) < 900);
        assert!(scale.ticks().contains(&500.0));
        let alone = LogScale::around([7.0].into_iter(), 100..900);
        assert!(alone.pixel(7.0) > 100 && alone.pixel(7.0) < 900);
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let points: Vec<(f64, f64)> = (0..50_000)
            .map(|i| (f64::from(i), f64::from(i % 777)))
            .collect();
        let thin = thinned(&points);
        assert!(thin.len() <= 2000);
        assert!(thin.iter().any(|p| p.1 == 776.0) && thin.iter().any(|p| p.1 == 0.0));
        assert!(thin.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn both_pictures_draw_and_odd_samples_do_not_break_them() {
        let mut batched = row("flood", 1, Engine::Kvfree, 3.0, 1);
        let mut unbatched = row("flood", 1, Engine::KvfreeUnbatched, 300.0, 1);
        let svg = bars(&[batched.clone(), unbatched.clone()]).expect("bars");
        assert!(svg.starts_with("<svg") && svg.contains("kvfree-unbatched"));
        assert_eq!(memory(&[&batched, &unbatched]), Ok(None));
        batched.run.samples = vec![(0.0, 0.0)];
        assert!(memory(&[&batched]).expect("one point").is_some());
        for far in [1.0, 1000.0] {
            batched.run.samples = vec![(0.0, 0.0), (1.0, 10.0)];
            unbatched.run.samples = vec![(0.0, 0.0), (far, 10.0 * far)];
            let svg = memory(&[&batched, &unbatched]).expect("lines");
            assert!(svg.is_some_and(|svg| svg.matches("<polyline").count() >= 2));
        }
    }
}
