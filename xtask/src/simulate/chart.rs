//! The picture: cache lines per slot and grace period over the number of slots.

use std::fmt::Display;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::table::Row;

const SIZE: (u32, u32) = (860, 420);
const LEGEND_HEIGHT: u32 = 34;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const FAINT: RGBColor = RGBColor(0x77, 0x77, 0x77);
const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);

/// plotters writes a font at 1/1.24 of the size it is given.
const TEXT: f64 = 13.0 * 1.24;
const SMALL: f64 = 12.0 * 1.24;

/// A line of the picture: its name, colour and value.
type Line = (&'static str, RGBColor, fn(&Row) -> f64);

const LINES: [Line; 4] = [
    ("all", RGBColor(0x0b, 0x4f, 0x8a), Row::cost),
    ("slots read", RGBColor(0xd9, 0x7b, 0x29), Row::slots_read),
    ("nodes read", RGBColor(0x3a, 0x96, 0x5a), Row::nodes_read),
    (
        "nodes written",
        RGBColor(0x8e, 0x6b, 0xb8),
        Row::nodes_written,
    ),
];

fn in_words(error: impl Display) -> String {
    error.to_string()
}

/// Cost per slot of each row, in sum and by kind, as SVG text.
pub(crate) fn cost(rows: &[Row]) -> Result<String, String> {
    let slots = |row: &Row| f64::from(row.case.slots);
    let least = rows.iter().map(slots).fold(f64::INFINITY, f64::min);
    let most = rows.iter().map(slots).fold(1.0, f64::max);
    let high = rows.iter().map(Row::cost).fold(0.1, f64::max) * 1.15;
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(in_words)?;
    let (legend, plot) = area.split_vertically(LEGEND_HEIGHT);
    let label = ("sans-serif", SMALL).into_font().color(&FAINT);
    let title = ("sans-serif", TEXT).into_font().color(&INK);
    let name = title.pos(Pos::new(HPos::Left, VPos::Center));
    for (x, (text, color, _)) in (80..).step_by(180).zip(LINES) {
        let swatch = PathElement::new(vec![(x, 16), (x + 26, 16)], color.stroke_width(3));
        legend.draw(&swatch).map_err(in_words)?;
        legend
            .draw_text(text, &name, (x + 34, 16))
            .map_err(in_words)?;
    }
    let mut chart = ChartBuilder::on(&plot)
        .margin_left(14)
        .margin_right(30)
        .margin_bottom(6)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d((least / 2.0..most * 2.0).log_scale().base(4.0), 0.0..high)
        .map_err(in_words)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .label_style(label)
        .axis_desc_style(title)
        .x_desc("slots, log scale")
        .y_desc("cache lines per slot and grace period")
        .x_label_formatter(&|slots| format!("{slots:.0}"))
        .y_label_formatter(&|lines| format!("{lines:.1}"))
        .draw()
        .map_err(in_words)?;
    for (_, color, value) in LINES {
        let points: Vec<(f64, f64)> = rows.iter().map(|row| (slots(row), value(row))).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))
            .map_err(in_words)?;
        chart
            .draw_series(
                points
                    .into_iter()
                    .map(|at| Circle::new(at, 4, color.filled())),
            )
            .map_err(in_words)?;
    }
    plot.present().map_err(in_words)?;
    drop((legend, plot, area, chart));
    Ok(svg)
}
