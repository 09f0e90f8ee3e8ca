//! The ways out of what waits: all that is ripe, a few objects of it, everything.

use super::{Batch, Waiting, later};
use crate::block::Line;
use crate::block::portion::Portion;
use rcu_core::{Cookie, GracePeriod};

impl Waiting {
    /// Takes out the objects that are ripe, oldest first, stopping at the first block that is not (K8); with
    /// `foreign`, also what runs foreign code (I2).
    pub(crate) fn take_ripe(&mut self, gp: &impl GracePeriod, foreign: bool) -> Batch {
        let mut batch = Batch::new();
        let mut bytes = take_ripe_blocks(&mut self.line, &mut batch.blocks, gp);
        bytes += take_ripe_blocks(&mut self.plain, &mut batch.blocks, gp);
        if foreign {
            bytes += take_ripe_blocks(&mut self.glue, &mut batch.blocks, gp);
            // Twice: what came while others were sealed may be ripe, too.
            for _ in 0..2 {
                if !self.sealed.is_empty() && gp.poll(self.sealed_cookie) {
                    batch.heads.append(self.sealed.take());
                    batch.heads_bytes += core::mem::take(&mut self.sealed_bytes);
                }
                self.seal_heads();
            }
            bytes += batch.heads_bytes;
        }
        batch.charged = self.leave(bytes);
        batch
    }

    /// The line that a portion comes from: the oldest ripe block of foreign objects; with `foreign`, also of those with drop glue (I2).
    #[inline]
    fn portion_line(&mut self, gp: &impl GracePeriod, foreign: bool) -> Option<&mut Line> {
        let is_ripe = |line: &Line| line.first().is_some_and(|b| gp.poll(b.cookie));
        if foreign && is_ripe(&self.glue) {
            return Some(&mut self.glue);
        }
        is_ripe(&self.plain).then_some(&mut self.plain)
    }

    /// Whether there is one.
    pub(crate) fn has_portion(&mut self, gp: &impl GracePeriod, foreign: bool) -> bool {
        self.portion_line(gp, foreign).is_some()
    }

    /// Takes out a few ripe foreign objects that one function frees, into an empty portion; none, if there are none.
    #[inline]
    pub(crate) fn take_portion(
        &mut self,
        portion: &mut Portion,
        gp: &impl GracePeriod,
        foreign: bool,
    ) {
        let Some(line) = self.portion_line(gp, foreign) else {
            return;
        };
        let Some(block) = line.first_mut() else {
            return;
        };
        block.pop_portion(portion);
        if block.nr_objects() == 0 {
            portion.emptied = line.pop();
        }
        portion.charged = self.leave(portion.bytes);
    }

    /// Takes out everything, ripe or not, with a cookie for all of it. Walks the line.
    pub(crate) fn take_all(&mut self, gp: &impl GracePeriod) -> Batch {
        self.seal(gp);
        let heads_bytes =
            core::mem::take(&mut self.sealed_bytes) + core::mem::take(&mut self.heads_bytes);
        let charged = self.leave(self.account.held);
        let mut cookie = Cookie::COMPLETED;
        let mut heads_born = 0;
        if !self.sealed.is_empty() {
            (cookie, heads_born) = (self.sealed_cookie, self.sealed_born);
            if !self.heads.is_empty() {
                cookie = later(cookie, self.heads_cookie);
            }
        }
        for block in self.lines().into_iter().flat_map(Line::iter) {
            cookie = later(cookie, block.cookie);
        }
        let mut heads = self.sealed.take();
        heads.append(self.heads.take());
        let mut blocks = self.line.take();
        blocks.append(self.plain.take());
        blocks.append(self.glue.take());
        Batch {
            blocks,
            heads,
            heads_bytes,
            heads_born,
            charged,
            cookie,
        }
    }
}

/// Moves ripe blocks from the front of a line, and says how many bytes they weigh.
fn take_ripe_blocks(line: &mut Line, ripe: &mut Line, gp: &impl GracePeriod) -> usize {
    let mut bytes = 0;
    while line.first().is_some_and(|b| gp.poll(b.cookie)) {
        let Some(block) = line.pop() else { break };
        // SAFETY: a block in line is valid and owned by it.
        bytes += unsafe { block.as_ref() }.bytes();
        ripe.push(block);
    }
    bytes
}
