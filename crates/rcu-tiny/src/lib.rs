#![doc = include_str!("../README.md")]
#![no_std]

mod place;
mod statics;
mod tiny;

pub use statics::TinyStatic;
pub use tiny::{Section, Tiny, TinyStats};
