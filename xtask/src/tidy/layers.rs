//! The layers: which crate may know which other, and what they may take from outside.

use serde_json::Value;

/// Normal edges inside the workspace, complete (DESIGN, "Crates and edges"). `true`: only behind a feature.
const EDGES: [(&str, &str, bool); 9] = [
    ("rcu-tiny", "rcu-core", false),
    ("rcu-tree", "rcu-core", false),
    ("pagealloc", "rcu-core", false),
    ("slab", "rcu-core", false),
    ("kvfree", "rcu-core", false),
    ("slab", "pagealloc", false),
    ("kvfree", "pagealloc", false),
    ("kvfree", "slab", true),
    ("kvfree", "rcu-tree", true),
];

/// What the library crates may link (DESIGN, "Allowed dependencies").
const NORMAL: [&str; 8] = [
    "allocator-api2",
    "arrayvec",
    "bitflags",
    "critical-section",
    "crossbeam-queue",
    "crossbeam-utils",
    "libc",
    "static_assertions",
];

/// What their tests and benches may use besides.
const DEV: [&str; 14] = [
    "arbitrary",
    "arc-swap",
    "buddy_system_allocator",
    "criterion",
    "critical-section",
    "crossbeam-epoch",
    "kovan",
    "loom",
    "mimalloc",
    "proptest",
    "rusty_alloc",
    "seize",
    "serde_json",
    "tikv-jemallocator",
];

/// What this program may use.
const XTASK: [&str; 8] = [
    "clap",
    "clap_complete",
    "indicatif",
    "plotters",
    "quote",
    "ruzstd",
    "serde_json",
    "syn",
];

/// The kinds of a dependency that a library's user gets too.
fn is_linked(dependency: &Value) -> bool {
    dependency["kind"].as_str() != Some("dev")
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or("?")
}

fn dependencies_of(package: &Value) -> &[Value] {
    package["dependencies"].as_array().map_or(&[], |list| list)
}

fn is_member(packages: &[Value], dependency: &Value) -> bool {
    packages
        .iter()
        .any(|package| package["name"] == dependency["name"])
}

/// (a) Only the edges of the design; nobody depends on xtask, in any way.
pub(super) fn edges(packages: &[Value]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages {
        let from = name(package);
        for dependency in dependencies_of(package) {
            let to = name(dependency);
            if to == "xtask" {
                complaints.push(format!("{from}: depends on xtask"));
            } else if is_member(packages, dependency) && is_linked(dependency) && from != "xtask" {
                let optional = dependency["optional"] == true;
                match EDGES.iter().find(|edge| (edge.0, edge.1) == (from, to)) {
                    None => complaints.push(format!("{from}: the edge to {to} breaks the layers")),
                    Some((_, _, true)) if !optional => {
                        complaints.push(format!("{from}: the edge to {to} must be optional"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    complaints
}

/// (b) Only the dependencies of the design from outside.
pub(super) fn dependencies(packages: &[Value]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages {
        let from = name(package);
        for dependency in dependencies_of(package) {
            if is_member(packages, dependency) {
                continue;
            }
            let to = name(dependency);
            let for_loom = to == "loom" && dependency["target"] == "cfg(loom)";
            let allowed = match (from, dependency["kind"].as_str()) {
                ("xtask", None) => XTASK.contains(&to),
                (_, None) => NORMAL.contains(&to) || for_loom,
                (_, Some("dev")) => NORMAL.contains(&to) || DEV.contains(&to),
                (_, Some(_)) => false,
            };
            if !allowed {
                let kind = dependency["kind"].as_str().unwrap_or("normal");
                complaints.push(format!("{from}: {kind} dependency {to} is not on the list"));
            }
        }
    }
    complaints
}

/// (b') No package from outside is called as one of ours: `cargo test -p NAME` would be refused as ambiguous.
pub(super) fn ambiguous(lock: &str) -> Vec<String> {
    let named = |name: &str| {
        let line = format!("name = \"{name}\"");
        lock.lines().filter(|l| l.trim() == line).count()
    };
    crate::cargo::CRATES
        .iter()
        .filter(|name| named(name) > 1)
        .map(|name| {
            format!("Cargo.lock: another package is called {name} too, so `-p {name}` is ambiguous")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[Value]) -> Value {
        json!({ "name": name, "dependencies": dependencies })
    }

    fn normal(name: &str) -> Value {
        json!({ "name": name, "kind": null, "optional": false, "target": null })
    }

    fn dev(name: &str) -> Value {
        json!({ "name": name, "kind": "dev", "optional": false, "target": null })
    }

    fn optional(name: &str) -> Value {
        json!({ "name": name, "kind": null, "optional": true, "target": null })
    }

    /// The six crates and xtask without a dependency, then one of them replaced.
    fn with(changed: Value) -> Vec<Value> {
        let names = crate::cargo::CRATES.into_iter().chain(["xtask"]);
        let mut packages: Vec<Value> = names.map(|name| package(name, &[])).collect();
        for package in &mut packages {
            if package["name"] == changed["name"] {
                *package = changed.clone();
            }
        }
        packages
    }

    #[test]
    fn edges_of_the_design_pass() {
        let kvfree = [
            normal("rcu-core"),
            normal("pagealloc"),
            optional("slab"),
            optional("rcu-tree"),
            dev("rcu-tiny"),
        ];
        assert_eq!(edges(&with(package("kvfree", &kvfree))), [""; 0]);
        let all: Vec<Value> = crate::cargo::CRATES.map(normal).to_vec();
        assert_eq!(edges(&with(package("xtask", &all))), [""; 0]);
    }

    #[test]
    fn other_edges_are_reported() {
        let cases = [
            ("rcu-core", normal("pagealloc"), "breaks the layers"),
            ("slab", normal("rcu-tree"), "breaks the layers"),
            ("slab", optional("rcu-tree"), "breaks the layers"),
            ("kvfree", normal("slab"), "must be optional"),
            ("slab", dev("xtask"), "depends on xtask"),
        ];
        for (from, dependency, complaint) in cases {
            let found = edges(&with(package(from, &[dependency])));
            assert!(
                found.len() == 1 && found[0].contains(complaint),
                "{found:?}"
            );
        }
    }

    #[test]
    fn dependencies_on_the_lists_pass() {
        let mut loom = normal("loom");
        loom["target"] = json!("cfg(loom)");
        let listed = [
            normal("libc"),
            normal("arrayvec"),
            dev("proptest"),
            dev("kovan"),
            loom,
        ];
        assert_eq!(dependencies(&with(package("rcu-core", &listed))), [""; 0]);
        assert_eq!(
            dependencies(&with(package("xtask", &[normal("clap")]))),
            [""; 0]
        );
    }

    #[test]
    fn a_second_package_of_the_same_name_is_reported() {
        let one = "[[package]]\nname = \"slab\"\nversion = \"0.1.0\"\n";
        let other = "[[package]]\nname = \"sharded-slab\"\nversion = \"0.1.7\"\n";
        assert_eq!(ambiguous(&format!("{one}{other}")), [""; 0]);
        let found = ambiguous(&format!("{one}{other}{one}"));
        assert!(found.len() == 1 && found[0].contains("slab"), "{found:?}");
    }

    #[test]
    fn dependencies_off_the_lists_are_reported() {
        let build = json!({ "name": "libc", "kind": "build", "target": null });
        let cases = [
            ("rcu-core", normal("parking_lot")),
            ("rcu-core", normal("loom")),
            ("rcu-core", normal("clap")),
            ("slab", dev("rand")),
            ("slab", build),
            ("xtask", normal("libc")),
        ];
        for (from, dependency) in cases {
            let found = dependencies(&with(package(from, &[dependency])));
            assert!(
                found.len() == 1 && found[0].contains("not on the list"),
                "{found:?}"
            );
        }
    }
}
