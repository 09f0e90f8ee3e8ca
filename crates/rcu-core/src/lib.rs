#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test, loom)), no_std)]

mod boxed;
mod cb_list;
mod cell;
#[cfg(all(feature = "std", not(loom)))]
pub mod conformance;
pub mod contract;
pub mod cpu;
mod domain;
mod double_call;
pub mod fence;
pub mod fork;
mod guard;
mod head;
mod head_stack;
mod list;
pub mod manual;
mod nulls;
mod refcount;
mod retired;
pub mod sanitize;
mod section;
mod seg_list;
mod seq;
pub mod sync;
#[doc(hidden)]
pub mod weaken;
mod work;

pub use boxed::{RcuBox, Reclaimer};
pub use cb_list::CbList;
pub use cell::{CompareExchangeError, RcuCell, RcuPointer};
pub use contract::{Domain, GracePeriod, NoReaders, Rcu, RcuSend};
#[doc(hidden)]
pub use domain::Named as __Named;
pub use double_call::{DoubleCall, double_calls, on_double_call};
pub use guard::{Guard, read, read_lock};
pub use head::{Callback, HasHead, Head, HeadFn, HeadOffset, MAX_OFFSET_WORDS};
pub use head_stack::HeadStack;
pub use list::{Cursor, Detached, Drain, Iter, ListNode, RcuList, Writer};
pub use nulls::{NullsHead, NullsLink, Visit, Walk};
pub use refcount::RefCount;
pub use retired::{Owned, Retired};
pub use section::{Online, OnlineGuard, Section, SendGuard};
pub use seg_list::SegList;
pub use seq::{Cookie, FullCookie, Seq};
pub use work::{Inline, RcuWork, ReadyWork, WorkList, WorkQueue};
