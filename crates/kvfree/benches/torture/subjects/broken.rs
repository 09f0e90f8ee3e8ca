//! The dull RCU under torture, right and wrong.

use super::plain::Plain;
use crate::rcu::subject::{Parcel, Subject};

impl Subject for &'static Plain {
    fn enter_send(self) -> Option<Parcel> {
        Some(Box::new(Plain::enter_send(self)))
    }
}
