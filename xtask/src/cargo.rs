//! What the verbs share: the workspace's place, calls of cargo, and the two ways to fail.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Why a verb ends without success. Its text is one line.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A bad option or bad input: exit status 2.
    Usage(String),
    /// A build, a run or a test that failed: exit status 1.
    Run(String),
}

impl Failure {
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Run(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text) | Self::Run(text)) = self;
        f.write_str(text)
    }
}

/// The workspace as `cargo metadata` describes it.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The directory of the root manifest.
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds; follows `CARGO_TARGET_DIR`.
    pub(crate) target: PathBuf,
    /// `cargo metadata --no-deps`, whole.
    pub(crate) metadata: Value,
}

impl Workspace {
    /// Asks cargo. The answer is about the tree that holds this program's sources, and about the current directory's
    /// workspace should that tree have moved since the build.
    pub(crate) fn locate() -> Result<Self, Failure> {
        let metadata = metadata(&["--no-deps"])?;
        let path = |key: &str| metadata[key].as_str().map(PathBuf::from);
        match (path("workspace_root"), path("target_directory")) {
            (Some(root), Some(target)) => Ok(Self {
                root,
                target,
                metadata,
            }),
            _ => Err(Failure::Run(
                "cargo metadata names no workspace root".to_owned(),
            )),
        }
    }

    /// `cargo metadata` with everything from outside that `Cargo.lock` names.
    pub(crate) fn resolved(&self) -> Result<Value, Failure> {
        metadata(&["--all-features"])
    }

    /// The workspace's packages, as metadata objects.
    pub(crate) fn packages(&self) -> &[Value] {
        self.metadata["packages"].as_array().map_or(&[], |p| p)
    }

    /// Whether `package` has a target of this kind ("test", "bench") and name.
    pub(crate) fn has_target(&self, package: &str, kind: &str, name: &str) -> bool {
        self.packages()
            .iter()
            .filter(|p| p["name"] == package)
            .filter_map(|p| p["targets"].as_array())
            .flatten()
            .any(|t| t["name"] == name && t["kind"][0] == kind)
    }

    /// A cargo command that runs in the workspace root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root);
        command
    }
}

/// `cargo metadata` with these options.
fn metadata(options: &[&str]) -> Result<Value, Failure> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1"]);
    command.args(options);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    if manifest.is_file() {
        command.arg("--manifest-path").arg(manifest);
    }
    let output = command
        .output()
        .map_err(|error| Failure::Run(format!("cargo metadata does not start: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().next().unwrap_or("no message");
        return Err(Failure::Run(format!("cargo metadata failed: {line}")));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::Run(format!("cargo metadata is not JSON: {error}")))
}

/// The six library crates, lowest layer first.
pub(crate) const CRATES: [&str; 6] = [
    "rcu-core",
    "rcu-tiny",
    "rcu-tree",
    "pagealloc",
    "slab",
    "kvfree",
];

/// The same cargo that runs us, so that a `+toolchain` carries over.
fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// How cargo is to tell what it built.
const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// Builds the bench target `bench` of `package` as the peers in it want it, with `cfgs` set, below `directory`, and
/// returns its executable.
pub(crate) fn build_bench(
    workspace: &Workspace,
    package: &str,
    bench: &str,
    features: &[&str],
    cfgs: &[&str],
    directory: &Path,
) -> Result<PathBuf, Failure> {
    let mut command = workspace.cargo();
    command.args([
        "bench", "--no-run", "-p", package, "--bench", bench, MESSAGES,
    ]);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    finish_bench(workspace, command, package, bench, cfgs, directory)
}

/// Builds a bench target as [`build_bench`] does, and returns the texts of its assembly too, a file a crate that is linked.
pub(crate) fn build_bench_with_assembly(
    workspace: &Workspace,
    package: &str,
    bench: &str,
    directory: &Path,
) -> Result<(PathBuf, Vec<String>), Failure> {
    let mut command = workspace.cargo();
    command.args([
        "rustc",
        "--profile",
        "bench",
        "-p",
        package,
        "--bench",
        bench,
        MESSAGES,
    ]);
    command.args(["--", "--emit", "asm"]);
    let program = finish_bench(workspace, command, package, bench, &[], directory)?;
    let mut texts = Vec::new();
    for file in assembly_of(&program) {
        let text = fs::read_to_string(&file)
            .map_err(|error| Failure::Run(format!("cannot read {}: {error}", file.display())))?;
        texts.push(text);
    }
    Ok((program, texts))
}

/// The files of assembly of a program, which the compiler leaves beside it: one a crate, after its optimisation across crates.
fn assembly_of(program: &Path) -> Vec<PathBuf> {
    let stem = program
        .file_stem()
        .map(|n| format!("{}.", n.to_string_lossy()));
    let is_its = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        name.zip(stem.as_deref())
            .is_some_and(|(n, stem)| n.starts_with(stem) && n.ends_with(".s"))
    };
    let entries = program.parent().map(fs::read_dir).into_iter().flatten();
    entries
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(is_its)
        .collect()
}

/// Sets what every build of a bench needs, runs it, and finds the executable.
fn finish_bench(
    workspace: &Workspace,
    mut command: Command,
    package: &str,
    bench: &str,
    cfgs: &[&str],
    directory: &Path,
) -> Result<PathBuf, Failure> {
    if !workspace.has_target(package, "bench", bench) {
        return Err(Failure::Run(format!(
            "{package} has no bench target {bench}"
        )));
    }
    command.env("CARGO_TARGET_DIR", directory);
    let mut flags: Vec<String> = cfgs.iter().map(|cfg| format!("--cfg={cfg}")).collect();
    if has_cmpxchg16b() {
        // kovan takes a lock in place of a double-word exchange unless it is told at build time; meet it at its best.
        flags.push("-Ctarget-feature=+cmpxchg16b".to_owned());
    }
    if !flags.is_empty() {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (name, value) = with_rustflags(&flags);
        command.env(name, value);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::Run(format!("cargo does not start: {error}")))?;
    if !output.status.success() {
        return Err(Failure::Run(format!(
            "the bench {bench} of {package} does not build"
        )));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact" && m["target"]["name"] == bench)
        .find_map(|m| m["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| Failure::Run(format!("cargo names no executable for the bench {bench}")))
}

fn has_cmpxchg16b() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("cmpxchg16b");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Adds `flags` behind whatever flags the caller's environment already holds, and returns the variable to set.
/// cargo reads the encoded variable first and then ignores the plain one, hence the choice.
pub(crate) fn with_rustflags(flags: &[&str]) -> (&'static str, OsString) {
    let (name, separator) = match env::var_os("CARGO_ENCODED_RUSTFLAGS") {
        Some(_) => ("CARGO_ENCODED_RUSTFLAGS", "\x1f"),
        None => ("RUSTFLAGS", " "),
    };
    let mut value = env::var_os(name).unwrap_or_default();
    for flag in flags {
        if !value.is_empty() {
            value.push(separator);
        }
        value.push(flag);
    }
    (name, value)
}

/// What this compiler calls itself.
pub(crate) fn compiler_version() -> Result<String, Failure> {
    let verbose = verbose_version()?;
    Ok(verbose.lines().next().unwrap_or_default().to_owned())
}

/// The triple this compiler builds for unless told otherwise. With it passed as `--target`, `RUSTFLAGS` reach neither
/// proc macros nor build scripts, which then are built once for all flags.
pub(crate) fn host_triple() -> Result<String, Failure> {
    let verbose = verbose_version()?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| Failure::Run("rustc -vV names no host".to_owned()))
}

fn verbose_version() -> Result<String, Failure> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .map_err(|error| Failure::Run(format!("rustc does not start: {error}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
