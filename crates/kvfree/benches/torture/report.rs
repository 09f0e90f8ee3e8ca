//! What the worker prints: JSON lines, any number of `{"status":{…}}`, and last one `{"result":{…}}`.

use crate::stage::Stage;
use serde_json::{Map, Value, json};
use std::io::Write;

fn print(line: &Value) {
    let mut out = std::io::stdout().lock();
    // A reader who has gone does not change what is found.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn map(pairs: Vec<(&'static str, u64)>) -> Map<String, Value> {
    let pairs = pairs.into_iter();
    pairs.map(|(name, n)| (name.to_owned(), n.into())).collect()
}

fn common(stage: &Stage, own: &Value) -> Value {
    let books = &stage.books;
    json!({
        "seconds": books.elapsed().as_secs_f64(),
        "counts": map(books.counts()),
        "faults": map(books.faults()),
        "pipe": books.pipe(),
        "circulation": books.circulation(),
        "own": own,
    })
}

pub(crate) fn status(stage: &Stage, own: &Value) {
    print(&json!({ "status": common(stage, own) }));
}

pub(crate) fn result(stage: &Stage, own: &Value) {
    let mut result = common(stage, own);
    let (first_after, messages) = stage.books.notes();
    result["seed"] = stage.seed.into();
    result["first_fault_seconds"] = first_after.map(|time| time.as_secs_f64()).into();
    result["messages"] = messages.into();
    print(&json!({ "result": result }));
}

pub(crate) fn list(scenarios: &Value) {
    print(scenarios);
}
