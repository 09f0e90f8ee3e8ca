//! The compiler's own assembly of x86-64, read far enough to count.
//!
//! What counts as the fast path of a function is found, not declared: the blocks that lie on a cheapest way from the entry to a
//! return, where a way costs the calls on it. A slow path is out of line, so that reaching it is a call; a call of a function
//! that is marked cold costs more than any others together. A call on the fast path itself is followed: its callee's fast
//! path is a part of it.
//!
//! All blocks of the fast path are added up, though some exclude each other (a section that is outermost, or nested): so a locked
//! instruction is found in whichever of them it is. What one execution runs is callgrind's to say.

use std::collections::HashMap;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) instructions: u64,
    pub(super) loads: u64,
    pub(super) stores: u64,
    /// Conditional jumps.
    pub(super) branches: u64,
    /// With a lock prefix, or an exchange with memory, which needs none.
    pub(super) locked: u64,
    pub(super) fences: u64,
    /// That cannot be avoided. Those whose code is here are counted in, too.
    pub(super) calls: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.loads += other.loads;
        self.stores += other.stores;
        self.branches += other.branches;
        self.locked += other.locked;
        self.fences += other.fences;
        self.calls += other.calls;
    }
}

/// What a call of a function marked cold costs, or of one that does not return.
const AWAY: u64 = 1 << 20;
/// A way that does not end.
const NEVER: u64 = u64::MAX / 4;

/// How a block ends, other than in the next one.
#[derive(Clone, Debug, PartialEq)]
enum Flow<'a> {
    Jump(&'a str),
    Branch(&'a str),
    Return,
    /// Nothing comes after it: a trap, a jump through a table.
    Stop,
}

/// Instructions that run one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
struct Block<'a> {
    counts: Counts,
    calls: Vec<&'a str>,
    flow: Vec<Flow<'a>>,
}

impl Block<'_> {
    fn falls_through(&self) -> bool {
        !matches!(
            self.flow.last(),
            Some(Flow::Jump(_) | Flow::Return | Flow::Stop)
        )
    }
}

#[derive(Clone, Debug, Default)]
struct Function<'a> {
    is_cold: bool,
    blocks: Vec<Block<'a>>,
    labels: HashMap<&'a str, usize>,
}

/// Functions by their symbols.
#[derive(Debug, Default)]
pub(super) struct Listing<'a> {
    functions: HashMap<&'a str, Function<'a>>,
    aliases: HashMap<&'a str, &'a str>,
}

impl<'a> Listing<'a> {
    /// Adds what `text`, a whole file of assembly in AT&T's syntax, holds.
    pub(super) fn read(&mut self, text: &'a str) {
        let mut is_cold = false;
        let mut open: Option<(&'a str, Function<'a>)> = None;
        let mut prefix = false;
        for line in text.lines() {
            let line = line
                .split_once('#')
                .map_or(line, |(code, _)| code)
                .trim_end();
            if let Some(label) = line
                .strip_suffix(':')
                .filter(|l| !l.starts_with([' ', '\t']))
            {
                match &mut open {
                    Some((_, function)) if label.starts_with(".LBB") => {
                        function.labels.insert(label, function.blocks.len());
                        function.blocks.push(Block::default());
                    }
                    Some(_) if label.starts_with(".Lfunc_end") => {
                        let (name, function) = open.take().expect("just matched");
                        self.functions.insert(name, function);
                    }
                    _ if label.starts_with('.') => {}
                    _ => {
                        let blocks = vec![Block::default()];
                        open = Some((
                            label,
                            Function {
                                is_cold,
                                blocks,
                                labels: HashMap::new(),
                            },
                        ));
                    }
                }
                continue;
            }
            let words = line.trim_start();
            if let Some(section) = words.strip_prefix(".section") {
                is_cold = section.contains(".text.unlikely");
            } else if words == ".text" {
                is_cold = false;
            } else if let Some((alias, name)) = words
                .strip_prefix(".set")
                .and_then(|rest| rest.split_once(','))
            {
                self.aliases.insert(alias.trim(), name.trim());
            } else if words.is_empty() || words.starts_with('.') {
                continue;
            } else if let Some((_, function)) = &mut open {
                prefix = function.take(words, prefix);
            }
        }
    }

    /// The symbols of all functions.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.functions.keys().chain(self.aliases.keys()).copied()
    }

    fn function(&self, name: &str) -> Option<&Function<'a>> {
        let name = self.aliases.get(name).copied().unwrap_or(name);
        self.functions.get(name)
    }

    /// What the fast path of `name` consists of; `None` if there is no such function, or no way through it.
    pub(super) fn fast_path(&self, name: &str) -> Option<Counts> {
        self.measure(name, &mut Vec::new())
            .map(|(_, counts)| counts)
    }

    /// The cost of the cheapest way through `name`, and what lies on such ways. `inside`: whose callee it is.
    fn measure<'n>(&self, name: &'n str, inside: &mut Vec<&'n str>) -> Option<(u64, Counts)>
    where
        'a: 'n,
    {
        let function = self.function(name)?;
        if inside.contains(&name) || inside.len() > 16 {
            return None;
        }
        inside.push(name);
        let mut own: Vec<(u64, Counts)> = Vec::new();
        for block in &function.blocks {
            let (mut cost, mut counts) = (0, block.counts);
            for callee in &block.calls {
                counts.calls += 1;
                cost += 1;
                match self.function(callee) {
                    Some(f) if f.is_cold => cost += AWAY,
                    Some(_) => match self.measure(callee, inside) {
                        Some((more, below)) => {
                            cost += more;
                            counts.add(below);
                        }
                        None => cost += AWAY,
                    },
                    None => {}
                }
            }
            own.push((cost, counts));
        }
        inside.pop();
        function.cheapest(&own)
    }
}

impl<'a> Function<'a> {
    /// Adds one instruction to the last block. Returns whether it was a prefix that stands alone on its line.
    fn take(&mut self, words: &'a str, prefixed: bool) -> bool {
        let (first, rest) = split_word(words);
        let is_prefix = matches!(
            first,
            "lock" | "rep" | "repe" | "repne" | "repz" | "notrack"
        );
        let locked = first == "lock" || prefixed;
        if is_prefix && rest.is_empty() {
            return first == "lock";
        }
        let (mnemonic, operands) = if is_prefix {
            split_word(rest)
        } else {
            (first, rest)
        };
        if self
            .blocks
            .last()
            .is_none_or(|b| !b.falls_through() || !b.flow.is_empty())
        {
            self.blocks.push(Block::default());
        }
        let block = self.blocks.last_mut().expect("pushed above");
        let operands = split_operands(operands);
        block.counts.add(count(mnemonic, &operands, locked));
        let target = operands.last().map_or("", |operand| symbol(operand));
        match mnemonic {
            "retq" | "ret" | "iretq" => block.flow.push(Flow::Return),
            "ud2" | "hlt" | "int3" => block.flow.push(Flow::Stop),
            "callq" | "call" => block.calls.push(target),
            "jmpq" | "jmp" if target.starts_with(".L") => block.flow.push(Flow::Jump(target)),
            "jmpq" | "jmp" if target.is_empty() => block.flow.push(Flow::Stop),
            "jmpq" | "jmp" => {
                // A call in the last place.
                block.calls.push(target);
                block.flow.push(Flow::Return);
            }
            _ if mnemonic.starts_with('j') => block.flow.push(Flow::Branch(target)),
            _ => {}
        }
        false
    }

    /// Where a block may go on, or `None` for a return.
    fn next(&self, block: usize) -> Vec<Option<usize>> {
        let mut next = Vec::new();
        for flow in &self.blocks[block].flow {
            match flow {
                Flow::Jump(label) | Flow::Branch(label) => {
                    next.extend(self.labels.get(label).copied().map(Some));
                }
                Flow::Return => next.push(None),
                Flow::Stop => {}
            }
        }
        if self.blocks[block].falls_through() && block + 1 < self.blocks.len() {
            next.push(Some(block + 1));
        }
        next
    }

    fn cheapest(&self, own: &[(u64, Counts)]) -> Option<(u64, Counts)> {
        let mut cost = vec![NEVER; self.blocks.len()];
        let below = |cost: &[u64], next: Option<usize>| next.map_or(0, |n| cost[n]);
        loop {
            let mut changed = false;
            for block in (0..self.blocks.len()).rev() {
                let least = self.next(block).into_iter().map(|n| below(&cost, n)).min();
                let new = least
                    .unwrap_or(NEVER)
                    .saturating_add(own[block].0)
                    .min(NEVER);
                if new < cost[block] {
                    cost[block] = new;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        if *cost.first()? >= NEVER {
            return None;
        }
        let mut total = Counts::default();
        let (mut seen, mut to_do) = (vec![false; self.blocks.len()], vec![0]);
        while let Some(block) = to_do.pop() {
            if std::mem::replace(&mut seen[block], true) {
                continue;
            }
            total.add(own[block].1);
            let rest = cost[block] - own[block].0;
            let on_way = |next: &Option<usize>| below(&cost, *next) == rest;
            to_do.extend(self.next(block).into_iter().filter(on_way).flatten());
        }
        Some((cost[0], total))
    }
}

fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.find([' ', '\t'])
        .map_or((text, ""), |at| (&text[..at], text[at..].trim()))
}

/// At the commas outside of parentheses.
fn split_operands(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut operands) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                operands.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        operands.push(text[start..].trim());
    }
    operands
}

/// The symbol of a jump's or a call's operand; empty if it goes through a register or a table.
fn symbol(operand: &str) -> &str {
    let name = operand.trim_start_matches('*');
    let is_plain = name == operand;
    let end = name.find(['@', '(', '+']).unwrap_or(name.len());
    let through_got = name[end..].starts_with("@GOTPCREL");
    if name.starts_with('%') || !(is_plain || through_got) {
        return "";
    }
    &name[..end]
}

fn is_memory(operand: &str) -> bool {
    operand.contains('(') || operand.starts_with("%fs:") || operand.starts_with("%gs:")
}

/// One instruction.
fn count(mnemonic: &str, operands: &[&str], prefixed: bool) -> Counts {
    let starts = |words: &[&str]| words.iter().any(|w| mnemonic.starts_with(w));
    let (mut loads, mut stores) = (0, 0);
    let memory = operands.iter().any(|o| is_memory(o));
    let into = operands.last().is_some_and(|o| is_memory(o));
    if starts(&["call"]) {
        (loads, stores) = (u64::from(memory), 1);
    } else if starts(&["j", "push"]) {
        (loads, stores) = (u64::from(memory), u64::from(starts(&["push"])));
    } else if starts(&["pop", "ret"]) {
        (loads, stores) = (1, u64::from(memory));
    } else if memory && !starts(&["lea", "nop", "prefetch"]) {
        let only_reads = starts(&["cmp", "test", "ucomis", "comis", "bt"])
            && !starts(&["cmpxchg", "bts", "btr", "btc"]);
        let only_writes = starts(&["mov", "vmov", "set"]);
        let one = operands.len() == 1 && starts(&["mul", "imul", "div", "idiv"]);
        if only_reads || one || !into {
            loads = 1;
        } else if only_writes {
            stores = 1;
        } else {
            (loads, stores) = (1, 1);
        }
    }
    Counts {
        instructions: 1,
        loads,
        stores,
        branches: u64::from(starts(&["j"]) && !starts(&["jmp"])),
        locked: u64::from(prefixed || memory && starts(&["xchg"])),
        fences: u64::from(matches!(mnemonic, "mfence" | "lfence" | "sfence")),
        calls: 0,
    }
}

#[cfg(test)]
mod tests;
