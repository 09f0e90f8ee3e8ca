//! The public interface of each crate as a list in a file, so that a change of it shows in review; and what each public item's
//! documentation must have.
//!
//! Read from the sources and not from rustdoc's JSON, which needs a nightly compiler of just the right week. That works
//! because `unreachable_pub` is denied: what is `pub` here can be named from outside. Not seen: what other macros than
//! `const_fn!` expand to, and which traits a type has by itself (`Send`; tests hold these).

use std::collections::BTreeSet;

use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Expr, Fields, ImplItem, Item, ItemImpl, Lit, Meta, Safety, Signature, TraitItem,
    Type, UseTree, Visibility,
};

use super::Source;
use crate::cargo::CRATES;

/// At most so many lines of a difference are printed; the rest shows in `git diff`.
const MOST_SHOWN: usize = 12;

/// Where the list of a crate lies.
pub(super) fn file(krate: &str) -> String {
    format!("xtask/api/{krate}.txt")
}

/// The interface of one crate.
#[derive(Debug, Default)]
pub(super) struct Api {
    lines: BTreeSet<String>,
    complaints: Vec<String>,
}

impl Api {
    /// Reads the crate's sources.
    pub(super) fn of(krate: &str, sources: &[Source]) -> Self {
        let root = format!("crates/{krate}/src/");
        let mut files = Vec::new();
        let mut api = Self::default();
        for source in sources {
            let inside = source.is_rust() && source.path.starts_with(&root);
            if !inside || source.path.ends_with("/tests.rs") || source.path.contains("/tests/") {
                continue;
            }
            match syn::parse_file(&source.text) {
                Ok(file) => files.push((source.path.as_str(), file)),
                Err(error) => (api.complaints).push(format!("{}: {error}", source.path)),
            }
        }
        let hidden: Vec<String> = (files.iter())
            .flat_map(|(path, file)| hidden_modules(path, &file.items))
            .collect();
        files.retain(|(path, _)| {
            let stem = path.strip_suffix(".rs").unwrap_or(path);
            let lies_in = |module: &String| {
                stem.strip_prefix(module.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            !hidden.iter().any(lies_in)
        });
        let types: BTreeSet<String> = (files.iter())
            .flat_map(|(_, file)| &file.items)
            .filter_map(type_name)
            .collect();
        for (path, file) in &files {
            let is_root = path.ends_with("/lib.rs");
            for item in &file.items {
                Walk {
                    api: &mut api,
                    types: &types,
                    path,
                    is_root,
                }
                .item(item);
            }
        }
        api
    }

    /// The list as it lies in its file.
    pub(super) fn text(&self, krate: &str) -> String {
        let mut text = format!(
            "# The public interface of {krate}, a line an item. `cargo xtask tidy --bless` writes it.\n"
        );
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// (j) What is public is listed, and documented as the house does.
pub(super) fn changes(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for krate in CRATES {
        let api = Api::of(krate, sources);
        complaints.extend(api.complaints.iter().cloned());
        let path = file(krate);
        let listed = sources.iter().find(|source| source.path == path);
        let listed: BTreeSet<&str> = listed.map_or_else(BTreeSet::new, |source| {
            source
                .text
                .lines()
                .filter(|line| !line.starts_with("# "))
                .collect()
        });
        let is: BTreeSet<&str> = api.lines.iter().map(String::as_str).collect();
        let gone = listed
            .difference(&is)
            .map(|line| format!("{path}: - {line}"));
        let new = is
            .difference(&listed)
            .map(|line| format!("{path}: + {line}"));
        let all: Vec<String> = gone.chain(new).collect();
        if !all.is_empty() {
            let more = all.len().saturating_sub(MOST_SHOWN);
            complaints.extend(all.into_iter().take(MOST_SHOWN));
            let rest = if more > 0 {
                format!("and {more} lines more; ")
            } else {
                String::new()
            };
            complaints.push(format!(
                "{path}: {rest}the public interface has changed: `cargo xtask tidy --bless` writes the list anew, CHANGELOG.md says why"
            ));
        }
    }
    complaints
}

/// The files, without `.rs`, of modules that documentation hides.
fn hidden_modules(path: &str, items: &[Item]) -> Vec<String> {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let base = ["/lib", "/mod"]
        .iter()
        .find_map(|name| stem.strip_suffix(name))
        .unwrap_or(stem);
    let module = |item: &Item| match item {
        Item::Mod(module) if is_hidden(&module.attrs) => Some(format!("{base}/{}", module.ident)),
        _ => None,
    };
    items.iter().filter_map(module).collect()
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// The name of a type or trait that others can name.
fn type_name(item: &Item) -> Option<String> {
    let (vis, attrs, ident) = match item {
        Item::Struct(it) => (&it.vis, &it.attrs, &it.ident),
        Item::Enum(it) => (&it.vis, &it.attrs, &it.ident),
        Item::Union(it) => (&it.vis, &it.attrs, &it.ident),
        Item::Type(it) => (&it.vis, &it.attrs, &it.ident),
        _ => return None,
    };
    (is_public(vis) && !is_hidden(attrs)).then(|| ident.to_string())
}

/// Whether documentation, or an ordinary build, leaves the item out.
fn is_hidden(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let text = tokens(attr);
        let unusual = [
            "#[cfg(test",
            "#[cfg(loom",
            "#[cfg(all(test",
            "#[cfg(all(loom",
            "#[cfg(all(doctest",
        ];
        text == "#[doc(hidden)]" || unusual.iter().any(|start| text.starts_with(start))
    })
}

/// The item's documentation, as text.
fn docs(attrs: &[Attribute]) -> String {
    let mut text = String::new();
    for attr in attrs {
        if let Meta::NameValue(pair) = &attr.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(value) = &pair.value
            && let Lit::Str(line) = &value.lit
        {
            text.push_str(&line.value());
            text.push('\n');
        }
    }
    text
}

/// Attributes that are part of an interface.
fn kept(attrs: &[Attribute]) -> String {
    let mut text = String::new();
    for attr in attrs {
        let line = tokens(attr);
        if line.starts_with("#[must_use") {
            text.push_str("#[must_use] ");
        } else if ["#[non_exhaustive]", "#[derive(", "#[cfg(", "#[repr("]
            .iter()
            .any(|a| line.starts_with(a))
        {
            text.push_str(&line);
            text.push(' ');
        }
    }
    text
}

/// Tokens as one would write them, in one line.
fn tokens(tree: &impl ToTokens) -> String {
    let mut text = tree.to_token_stream().to_string().replace('\n', " ");
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" ::", "::"),
        ("# [", "#["),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" [", "["),
        ("[ ", "["),
        (" ]", "]"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" :", ":"),
        (" ;", ";"),
        ("& ", "&"),
        ("* mut", "*mut"),
        ("* const", "*const"),
        (" !", "!"),
        (",)", ")"),
        (",>", ">"),
        ("->(", "-> ("),
        (" &(", " &("),
    ] {
        text = text.replace(from, to);
    }
    // What the removal of blanks has joined that is apart by custom.
    text.replace("mut[", "mut [")
        .replace("mut(", "mut (")
        .replace("=[", "= [")
        .replace("+(", "+ (")
        .replace("->[", "-> [")
        .replace("as(", "as (")
        .replace("->!", "-> !")
        .trim_end_matches(',')
        .to_owned()
}

/// Parts of an implementation inside of a macro's braces.
struct Parts(Vec<ImplItem>);

impl Parse for Parts {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut parts = Vec::new();
        while !input.is_empty() {
            parts.push(input.parse()?);
        }
        Ok(Self(parts))
    }
}

struct Walk<'w> {
    api: &'w mut Api,
    types: &'w BTreeSet<String>,
    path: &'w str,
    is_root: bool,
}

impl Walk<'_> {
    fn list(&mut self, attrs: &[Attribute], text: &str) {
        self.api.lines.insert(format!("{}{text}", kept(attrs)));
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Fn(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                self.list(&it.attrs, &format!("pub {}", tokens(&it.sig)));
                self.function(&it.attrs, &it.sig, "");
            }
            Item::Struct(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                let generics = generics(&it.generics);
                self.list(&it.attrs, &format!("pub struct {}{generics}", it.ident));
                self.fields(&it.ident.to_string(), &it.fields, false);
            }
            Item::Enum(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                let generics = generics(&it.generics);
                self.list(&it.attrs, &format!("pub enum {}{generics}", it.ident));
                for variant in &it.variants {
                    let name = format!("{}::{}", it.ident, variant.ident);
                    self.list(&variant.attrs, &name);
                    self.fields(&name, &variant.fields, true);
                }
            }
            Item::Type(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                let generics = generics(&it.generics);
                let to = tokens(&it.ty);
                self.list(
                    &it.attrs,
                    &format!("pub type {}{generics} = {to}", it.ident),
                );
            }
            Item::Const(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                self.list(
                    &it.attrs,
                    &format!("pub const {}: {}", it.ident, tokens(&it.ty)),
                );
            }
            Item::Static(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                self.list(
                    &it.attrs,
                    &format!("pub static {}: {}", it.ident, tokens(&it.ty)),
                );
            }
            Item::Trait(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                let safety = if it.unsafety.is_some() { "unsafe " } else { "" };
                let above = if it.supertraits.is_empty() {
                    String::new()
                } else {
                    format!(": {}", tokens(&it.supertraits))
                };
                let generics = generics(&it.generics);
                self.list(
                    &it.attrs,
                    &format!("pub {safety}trait {}{generics}{above}", it.ident),
                );
                if it.unsafety.is_some()
                    && !docs(&it.attrs).contains("# Guarantees")
                    && !docs(&it.attrs).contains("# Safety")
                {
                    self.complain(
                        &it.ident.to_string(),
                        "an unsafe trait without `# Guarantees`",
                    );
                }
                for part in &it.items {
                    self.part_of_trait(&it.ident.to_string(), part);
                }
            }
            Item::Macro(it) => {
                let exported = it
                    .attrs
                    .iter()
                    .any(|attr| attr.path().is_ident("macro_export"));
                if let Some(name) = it
                    .ident
                    .as_ref()
                    .filter(|_| exported && !is_hidden(&it.attrs))
                {
                    self.list(&it.attrs, &format!("macro {name}!"));
                }
            }
            Item::Impl(it) if !is_hidden(&it.attrs) => self.implementation(it),
            Item::Use(it) if self.is_root && is_public(&it.vis) && !is_hidden(&it.attrs) => {
                let names = &mut Vec::new();
                used(&it.tree, String::new(), names);
                for name in names {
                    self.list(&it.attrs, &format!("pub use {name}"));
                }
            }
            Item::Mod(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                self.list(&it.attrs, &format!("pub mod {}", it.ident));
                for item in it.content.iter().flat_map(|(_, items)| items) {
                    self.item(item);
                }
            }
            _ => {}
        }
    }

    fn fields(&mut self, of: &str, fields: &Fields, all: bool) {
        for (at, field) in fields.iter().enumerate() {
            if all || is_public(&field.vis) {
                let name = field
                    .ident
                    .as_ref()
                    .map_or_else(|| at.to_string(), ToString::to_string);
                self.list(&field.attrs, &format!("{of}.{name}: {}", tokens(&field.ty)));
            }
        }
    }

    fn part_of_trait(&mut self, of: &str, part: &TraitItem) {
        match part {
            TraitItem::Fn(it) if !is_hidden(&it.attrs) => {
                let provided = if it.default.is_some() { " { … }" } else { "" };
                self.list(&it.attrs, &format!("{of}::{}{provided}", tokens(&it.sig)));
                if matches!(it.sig.safety, Safety::Unsafe(_))
                    && !docs(&it.attrs).contains("# Safety")
                {
                    self.complain(
                        &format!("{of}::{}", it.sig.ident),
                        "an unsafe function without `# Safety`",
                    );
                }
            }
            TraitItem::Const(it) if !is_hidden(&it.attrs) => {
                self.list(
                    &it.attrs,
                    &format!("{of}::const {}: {}", it.ident, tokens(&it.ty)),
                );
            }
            TraitItem::Type(it) if !is_hidden(&it.attrs) => {
                let bounds = if it.bounds.is_empty() {
                    String::new()
                } else {
                    format!(": {}", tokens(&it.bounds))
                };
                self.list(&it.attrs, &format!("{of}::type {}{bounds}", it.ident));
            }
            _ => {}
        }
    }

    fn implementation(&mut self, it: &ItemImpl) {
        let Type::Path(path) = it.self_ty.as_ref() else {
            return;
        };
        let Some(name) = path.path.segments.last().map(|last| last.ident.to_string()) else {
            return;
        };
        if !self.types.contains(&name) {
            return;
        }
        let of = tokens(&it.self_ty);
        if let Some((of_trait, _)) = &it.trait_ {
            let safety = if it.unsafety.is_some() { "unsafe " } else { "" };
            let generics = generics(&it.generics);
            self.list(
                &it.attrs,
                &format!("{safety}impl{generics} {} for {of}", tokens(of_trait)),
            );
            return;
        }
        self.parts(&it.attrs, &of, &it.items);
    }

    fn parts(&mut self, outer: &[Attribute], of: &str, parts: &[ImplItem]) {
        let condition = kept(outer);
        for part in parts {
            match part {
                ImplItem::Fn(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                    self.list(&it.attrs, &format!("{condition}{of}::{}", tokens(&it.sig)));
                    self.function(&it.attrs, &it.sig, of);
                }
                ImplItem::Const(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
                    self.list(
                        &it.attrs,
                        &format!("{condition}{of}::const {}: {}", it.ident, tokens(&it.ty)),
                    );
                }
                ImplItem::Macro(it)
                    if it
                        .mac
                        .path
                        .segments
                        .last()
                        .is_some_and(|last| last.ident == "const_fn") =>
                {
                    match it.mac.parse_body::<Parts>() {
                        Ok(inner) => self.parts(outer, of, &inner.0),
                        Err(error) => self.complain(of, &error.to_string()),
                    }
                }
                _ => {}
            }
        }
    }

    /// What a function's documentation must have. What is for the child of a fork has tests that fork for an example.
    fn function(&mut self, attrs: &[Attribute], sig: &Signature, of: &str) {
        let (text, name) = (docs(attrs), format!("{of}::{}", sig.ident));
        let name = name.trim_start_matches("::");
        if matches!(sig.safety, Safety::Unsafe(_)) {
            if !text.contains("# Safety") {
                self.complain(name, "an unsafe function without `# Safety`");
            }
            let by_fork = name.contains("fork");
            if !text.contains("```") && !text.contains("example") && !by_fork {
                self.complain(
                    name,
                    "an unsafe function without an example of right use, or a word where one is",
                );
            }
        }
        if tokens(&sig.output).contains("-> Result<") && !text.contains("# Errors") {
            self.complain(
                name,
                "returns a `Result`, and its documentation has no `# Errors`",
            );
        }
    }

    fn complain(&mut self, name: &str, what: &str) {
        (self.api.complaints).push(format!("{}: {name}: {what}", self.path));
    }
}

/// The parameters and what is asked of them.
fn generics(generics: &syn::Generics) -> String {
    let mut text = tokens(generics);
    if let Some(clause) = &generics.where_clause {
        let asked: Punctuated<_, syn::Token![,]> = clause.predicates.clone();
        text.push_str(" where ");
        text.push_str(tokens(&asked).trim_end_matches(','));
    }
    text
}

/// The paths that a `use` names.
fn used(tree: &UseTree, before: String, names: &mut Vec<String>) {
    match tree {
        UseTree::Path(path) => used(&path.tree, format!("{before}{}::", path.ident), names),
        UseTree::Name(name) => names.push(format!("{before}{}", name.ident)),
        UseTree::Rename(name) => names.push(format!("{before}{} as {}", name.ident, name.rename)),
        UseTree::Group(group) => {
            for tree in &group.items {
                used(tree, before.clone(), names);
            }
        }
        _ => names.push(format!("{before}*")),
    }
}

#[cfg(test)]
mod tests;
