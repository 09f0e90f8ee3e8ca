//! Fills a zone, frees some of it, and writes a picture of what is where to a file.
//!
//! ```sh
//! cargo run -p pagealloc --example heatmap -- zone.svg
//! ```

use pagealloc::{Attempt, Mmap, Order, PageBlock, PageReq, Zone};
use rcu_core::cpu::Threads;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or("heatmap.svg".into());
    let zone = Zone::new(Threads, Mmap::reserve(256 << 20)?)?;

    // Three quarters of 128 MiB, in blocks of many sizes; then a part of them goes back, some of it to lists and the stash.
    let mut random = 1_u32;
    let mut next = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random >> 16
    };
    let (mut blocks, mut pages) = (Vec::new(), 0);
    while pages < 24 << 10 {
        let order = Order::new((next() % 12).saturating_sub(5) as u8).expect("at most 6");
        blocks.push(PageBlock::new(&zone, PageReq::new(order))?);
        pages += order.pages();
    }
    let mut kept = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        match next() % 8 {
            0..4 => kept.push(block),
            4 if i % 3 == 0 => block.free_at(Attempt::PcpOnly),
            _ => drop(block),
        }
    }
    let mut svg = String::new();
    zone.heatmap(&mut svg)?;
    std::fs::write(&path, svg)?;
    println!("{:#}", zone.stats());
    println!("wrote {path}");
    Ok(())
}
