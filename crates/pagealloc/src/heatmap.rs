//! A picture of a zone: its pages as a grid of coloured cells, in SVG.
//!
//! Nothing is gathered before it is drawn: the metadata is walked once, cell by cell, without a lock. So the picture needs no memory,
//! and is exact if nobody uses the zone meanwhile; where somebody does, a block may be drawn as what it was or as what it becomes.
//! A large zone is drawn with larger cells, at most [`MAX_CELLS`], a few hundred KiB of text.

#![deny(unsafe_code)]

use crate::api::{Order, PAGE_SIZE};
use crate::buddy::ORDERS;
use crate::frames::Metas;
use crate::meta::Kind;
use crate::stats::ZoneStats;
use core::fmt;

/// Cells of a picture at most: with 64 in a row, a square.
const MAX_CELLS: u32 = 4096;
const MAX_COLUMNS: u32 = 64;
/// Fewer make tall pictures of small zones, or huge cells.
const MIN_COLUMNS: u32 = 8;
/// Width of the grid, in pixels; a multiple of `MAX_COLUMNS`.
const WIDTH: u32 = 640;
const MARGIN: u32 = 16;
/// Two lines of text above the grid.
const HEADER: u32 = 56;
/// Two lines of legend below it.
const FOOTER: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Colour([u8; 3]);

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

const OUT: Colour = Colour([0xc0, 0x39, 0x2b]);
const LISTED: Colour = Colour([0x2e, 0x86, 0xde]);
const STASHED: Colour = Colour([0xf3, 0x9c, 0x12]);
const GUARD: Colour = Colour([0x2d, 0x34, 0x36]);
const NOT_GIVEN: Colour = Colour([0xe6, 0xe6, 0xe6]);
/// The largest free block's shade, of the least and of the greatest order.
const FREE: [Colour; 2] = [Colour([0xc7, 0xe9, 0xc0]), Colour([0x00, 0x5a, 0x28])];

/// The shade of free pages among which the largest block has `order`.
fn free_colour(order: Order) -> Colour {
    let step = |channel: usize| {
        let [least, greatest] = FREE.map(|colour| usize::from(colour.0[channel]));
        let (at, all) = (order.get(), Order::MAX.get());
        ((least * (all - at) + greatest * at) / all) as u8
    };
    Colour([step(0), step(1), step(2)])
}

/// The pages of one cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Cell {
    out: u32,
    listed: u32,
    stashed: u32,
    free: u32,
    guard: u32,
    not_given: u32,
    /// The order of the largest free block that lies in the cell, or that the cell lies in.
    largest: Order,
}

impl Cell {
    fn add(&mut self, kind: Kind, order: Order, pages: u32) {
        let count = match kind {
            Kind::Out => &mut self.out,
            Kind::Listed => &mut self.listed,
            Kind::Stashed => &mut self.stashed,
            Kind::Free => {
                self.largest = self.largest.max(order);
                &mut self.free
            }
            Kind::Guard => &mut self.guard,
            Kind::None => &mut self.not_given,
        };
        *count += pages;
    }

    /// The mean of its pages' colours.
    fn colour(&self) -> Colour {
        let parts = [
            (self.out, OUT),
            (self.listed, LISTED),
            (self.stashed, STASHED),
            (self.free, free_colour(self.largest)),
            (self.guard, GUARD),
            (self.not_given, NOT_GIVEN),
        ];
        let pages: u64 = parts.iter().map(|(n, _)| u64::from(*n)).sum();
        let mean = |channel: usize| {
            let part = |(n, colour): &(u32, Colour)| u64::from(*n) * u64::from(colour.0[channel]);
            (parts.iter().map(part).sum::<u64>() / pages.max(1)) as u8
        };
        Colour([mean(0), mean(1), mean(2)])
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (pages, name) in [
            (self.out, "out"),
            (self.listed, "on lists"),
            (self.stashed, "stashed"),
            (self.guard, "guards"),
            (self.not_given, "not given"),
            (self.free, "free"),
        ] {
            if pages > 0 {
                let comma = if first { "" } else { ", " };
                write!(f, "{comma}{pages} {name}")?;
                first = false;
            }
        }
        if self.free > 0 {
            write!(f, " (largest order {})", self.largest.get())?;
        }
        Ok(())
    }
}

/// The free block that begins at a page, where metadata does not say so.
type FreeAt<'a> = &'a dyn Fn(u32) -> Option<Order>;

/// The blocks of a zone in the order of their addresses.
struct Walk<'a> {
    metas: Metas,
    free_at: FreeAt<'a>,
    at: u32,
    /// The block that `at` lies in, if that is before its end.
    kind: Kind,
    order: Order,
    end: u32,
}

impl<'a> Walk<'a> {
    const fn new(metas: Metas, free_at: FreeAt<'a>) -> Self {
        Self {
            metas,
            free_at,
            at: 0,
            kind: Kind::None,
            order: Order::ZERO,
            end: 0,
        }
    }

    /// The pages from where it is up to `to`.
    fn cell(&mut self, to: u32) -> Cell {
        let mut cell = Cell::default();
        while self.at < to {
            if self.at >= self.end {
                let state = self.metas.at(self.at).state();
                self.kind = state.kind();
                self.order = state.order();
                if self.kind == Kind::None
                    && let Some(order) = (self.free_at)(self.at)
                {
                    (self.kind, self.order) = (Kind::Free, order);
                }
                let pages = match self.kind {
                    Kind::None => 1,
                    _ => self.order.pages() as u32,
                };
                self.end = self.at + pages;
            }
            let end = self.end.min(to);
            cell.add(self.kind, self.order, end - self.at);
            self.at = end;
        }
        cell
    }
}

/// How a zone's pages are laid out in cells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Grid {
    pages: u32,
    pages_per_cell: u32,
    cells: u32,
    columns: u32,
}

impl Grid {
    fn new(pages: u32) -> Self {
        let pages_per_cell = pages.div_ceil(MAX_CELLS).max(1).next_power_of_two();
        let cells = pages.div_ceil(pages_per_cell);
        let columns = cells.isqrt().next_power_of_two();
        Self {
            pages,
            pages_per_cell,
            cells,
            columns: columns.clamp(MIN_COLUMNS, MAX_COLUMNS),
        }
    }

    /// The side of a cell, in pixels.
    const fn side(self) -> u32 {
        WIDTH / self.columns
    }

    const fn height(self) -> u32 {
        self.cells.div_ceil(self.columns) * self.side()
    }
}

/// Draws the first `pages` pages.
pub(crate) fn draw(
    out: &mut impl fmt::Write,
    metas: Metas,
    pages: u32,
    stats: &ZoneStats,
    free_at: FreeAt<'_>,
) -> fmt::Result {
    let grid = Grid::new(pages.min(metas.len()));
    let (width, height) = (WIDTH + 2 * MARGIN, HEADER + grid.height() + FOOTER);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>Page zone</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
    )?;
    header(out, grid, stats)?;
    writeln!(out, "<g stroke=\"#ffffff\" stroke-width=\"0.5\">")?;
    let mut walk = Walk::new(metas, free_at);
    for i in 0..grid.cells {
        let first = walk.at;
        let last = grid.pages.min(first + grid.pages_per_cell) - 1;
        let cell = walk.cell(last + 1);
        let side = grid.side();
        let (x, y) = (
            MARGIN + i % grid.columns * side,
            HEADER + i / grid.columns * side,
        );
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" fill=\"{}\"><title>pages {first} to {last}: {cell}</title></rect>",
            cell.colour()
        )?;
    }
    writeln!(out, "</g>")?;
    legend(out, HEADER + grid.height())?;
    writeln!(out, "</svg>")
}

fn header(out: &mut impl fmt::Write, grid: Grid, stats: &ZoneStats) -> fmt::Result {
    let (size, unit) = match grid.pages_per_cell as usize * (PAGE_SIZE >> 10) {
        kib @ ..1024 => (kib, "KiB"),
        kib => (kib >> 10, "MiB"),
    };
    writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"22\" font-size=\"15\">{} pages: {} out, {} free, {} on lists, {} stashed</text>\n\
         <text x=\"{MARGIN}\" y=\"42\" fill=\"#555555\">A cell is {} {} ({size} {unit}), {} cells. \
         Of what is free, {} ‰ is unusable for a huge page.</text>",
        stats.total_pages,
        stats.nr_allocated(),
        stats.free_pages,
        stats.list_pages,
        stats.stash_pages,
        grid.pages_per_cell,
        if grid.pages_per_cell == 1 {
            "page"
        } else {
            "pages"
        },
        grid.cells,
        stats.unusable_index(Order::at(9)),
    )
}

/// What the colours mean: kinds in one line, orders of free blocks in another.
fn legend(out: &mut impl fmt::Write, top: u32) -> fmt::Result {
    let kinds = [
        (OUT, "out"),
        (LISTED, "on a slot's list"),
        (STASHED, "stashed"),
        (GUARD, "guard"),
        (NOT_GIVEN, "not given by the source"),
    ];
    let mut x = MARGIN;
    for (colour, name) in kinds {
        let (y, text) = (top + 12, x + 16);
        let base = y + 10;
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{text}\" y=\"{base}\">{name}</text>"
        )?;
        x += 36 + 7 * name.len() as u32;
    }
    let y = top + 36;
    let base = y + 10;
    writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{base}\">free; largest block of order</text>"
    )?;
    for order in 0..ORDERS {
        let x = MARGIN + 176 + 36 * order as u32;
        let (colour, text) = (free_colour(Order::at(order)), x + 15);
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{text}\" y=\"{base}\">{order}</text>"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_a_bounded_number_of_cells_and_holds_every_page() {
        let sizes = (0..5000).chain([1 << 14, (1 << 20) + 1, 1 << 28, u32::MAX - 4096]);
        for pages in sizes {
            let grid = Grid::new(pages);
            assert!(grid.cells <= MAX_CELLS, "{grid:?}");
            let room = u64::from(grid.cells) * u64::from(grid.pages_per_cell);
            assert!(room >= u64::from(pages), "{grid:?}");
            assert!(
                room < u64::from(pages) + u64::from(grid.pages_per_cell),
                "{grid:?}"
            );
            assert_eq!(WIDTH % grid.columns, 0);
            assert!(grid.height() <= 1280, "{grid:?}");
        }
    }

    #[test]
    fn a_cell_is_the_mean_of_its_pages() {
        let mut cell = Cell::default();
        cell.add(Kind::Out, Order::ZERO, 3);
        assert_eq!(cell.colour(), OUT);
        cell.add(Kind::Guard, Order::ZERO, 1);
        let [red, ..] = cell.colour().0;
        assert_eq!(u32::from(red), (3 * 0xc0 + 0x2d) / 4);
        cell.add(Kind::Free, Order::at(2), 4);
        cell.add(Kind::Free, Order::at(1), 2);
        assert_eq!(
            cell.to_string(),
            "3 out, 1 guards, 6 free (largest order 2)"
        );
        assert_eq!(free_colour(Order::ZERO), FREE[0]);
        assert_eq!(free_colour(Order::MAX), FREE[1]);
    }
}
