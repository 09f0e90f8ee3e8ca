#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

mod api;

pub use api::{AllocError, Attempt, Order, PAGE_SHIFT, PAGE_SIZE, PageAlloc, PageReq, PageTag};
