//! The licences of what comes from outside.
//!
//! Everything here is under MIT or Apache-2.0, and so must be whatever is linked, or under something as free. What only tests,
//! benches and this program use is held to the same: it is built on contributors' machines.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

/// Licences that ask for a notice at most.
const FREE: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether an SPDX expression leaves a choice that is free. `/` is how `OR` was written once.
fn is_free(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], " ").replace('/', " OR ");
    // `AND` binds closer than `OR`, but for brackets: then every alternative of each part must hold, which is stricter.
    let alternatives = if expression.contains('(') {
        vec![flat.replace(" OR ", " AND ")]
    } else {
        flat.split(" OR ").map(str::to_owned).collect()
    };
    alternatives
        .iter()
        .any(|alternative| (alternative.split(" AND ")).all(|name| FREE.contains(&name.trim())))
}

/// Name, version and licence of every package from outside, as `cargo metadata` has them.
fn outside(resolved: &Value) -> impl Iterator<Item = (String, &str)> {
    let packages = resolved["packages"].as_array().map_or(&[][..], |p| p);
    packages.iter().filter(|p| !p["source"].is_null()).map(|p| {
        let text = |key: &str| p[key].as_str().unwrap_or("none");
        (
            format!("{} {}", text("name"), text("version")),
            text("license"),
        )
    })
}

/// (k) Every package from outside is under a licence that is known to be free.
pub(super) fn unknown(resolved: &Value) -> Vec<String> {
    outside(resolved)
        .filter(|(_, licence)| !is_free(licence))
        .map(|(name, licence)| {
            format!("Cargo.lock: {name}: its licence is {licence}, which is not on the list")
        })
        .collect()
}

/// The packages by licence.
pub(super) fn table(resolved: &Value) -> String {
    let mut by_licence: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, licence) in outside(resolved) {
        by_licence.entry(licence).or_default().push(name);
    }
    let mut table = String::new();
    for (licence, names) in by_licence {
        let _ = writeln!(table, "{licence}\n    {}", names.join(", "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_free_alternative_is_enough() {
        for free in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(is_free(free), "{free}");
        }
        for other in [
            "GPL-3.0-only",
            "MIT AND GPL-2.0",
            "none",
            "(MIT OR GPL-2.0) AND ISC",
            "",
        ] {
            assert!(!is_free(other), "{other}");
        }
    }

    #[test]
    fn only_what_comes_from_outside_counts() {
        let package = |name: &str, source: Value, licence: Value| json!({ "name": name, "version": "1.0.0", "source": source, "license": licence });
        let resolved = json!({ "packages": [
            package("slab", Value::Null, json!("MIT OR Apache-2.0")),
            package("good", json!("registry"), json!("MIT")),
            package("bad", json!("registry"), json!("GPL-2.0")),
            package("silent", json!("registry"), Value::Null),
        ]});
        let found = unknown(&resolved);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("bad 1.0.0") && found[1].contains("silent"));
        assert_eq!(table(&resolved).lines().count(), 6);
        assert!(!table(&resolved).contains("slab"));
    }
}
