use super::*;

/// A function as the compiler writes it: a hit, a block for a miss that calls a cold function, and one that ends the program.
const HIT: &str = "\
\t.section\t.text.probe_hit,\"ax\",@progbits
\t.globl\tprobe_hit
probe_hit:
.Lfunc_begin0:
\t.cfi_startproc
\tpushq\t%rbx
\tmovq\t(%rdi), %rax
\ttestq\t%rax, %rax
\tje\t.LBB0_2
\tdecq\t%rax
\tmovq\t%rax, (%rdi)
\tpopq\t%rbx
\tretq
.LBB0_2:
\tlock\t\tincq\t8(%rdi)
\tcallq\t*slow@GOTPCREL(%rip)
\tpopq\t%rbx
\tretq
.LBB0_3:
\tcallq\tpanic
\tud2
.Lfunc_end0:
\t.section\t\".text.unlikely.slow\",\"ax\",@progbits
slow:
\tmfence
\tretq
.Lfunc_end1:
";

fn fast(text: &str, name: &str) -> Counts {
    let mut listing = Listing::default();
    listing.read(text);
    listing.fast_path(name).expect("a way through")
}

#[test]
fn a_miss_is_not_on_the_fast_path() {
    let expected = Counts {
        instructions: 8,
        // The word; what `pop` and `ret` take from the stack.
        loads: 3,
        stores: 2,
        branches: 1,
        ..Counts::default()
    };
    assert_eq!(fast(HIT, "probe_hit"), expected);
}

#[test]
fn a_lock_prefix_on_the_fast_path_is_found() {
    let before = fast(HIT, "probe_hit").locked;
    for (from, to) in [
        ("\tdecq\t%rax\n", "\tlock\t\tdecq\t(%rdi)\n"),
        ("\tdecq\t%rax\n", "\tlock\n\tdecq\t(%rdi)\n"),
        ("\tmovq\t%rax, (%rdi)", "\txchgq\t%rax, (%rdi)"),
        (
            "\tretq\n.LBB0_2",
            "\tlock cmpxchgq\t%rcx, (%rdi)\n\tretq\n.LBB0_2",
        ),
    ] {
        let text = HIT.replacen(from, to, 1);
        assert_ne!(text, HIT);
        assert_eq!(fast(&text, "probe_hit").locked, before + 1, "{to}");
    }
}

#[test]
fn an_exchange_of_registers_is_not_locked() {
    let text = HIT.replacen("\tdecq\t%rax", "\txchgq\t%rax, %rcx", 1);
    assert_eq!(fast(&text, "probe_hit").locked, 0);
}

#[test]
fn a_fence_on_the_fast_path_is_found() {
    let text = HIT.replacen("\tdecq\t%rax", "\tmfence", 1);
    assert_eq!(fast(&text, "probe_hit").fences, 1);
}

#[test]
fn a_lock_in_one_of_two_ways_is_found() {
    let text = "\
f:
\ttestl\t%edi, %edi
\tje\t.LBB0_2
\tlock\t\torl\t$0, -64(%rsp)
.LBB0_2:
\tretq
.Lfunc_end0:
";
    assert_eq!(fast(text, "f").locked, 1);
}

#[test]
fn calls_that_cannot_be_avoided_are_followed() {
    let text = format!("g:\n\tjmp\tprobe_hit\n.Lfunc_end9:\n.set h, g\n{HIT}");
    let hit = fast(&text, "probe_hit");
    for name in ["g", "h"] {
        let through = fast(&text, name);
        assert_eq!(through.instructions, hit.instructions + 1);
        assert_eq!(through.calls, 1);
    }
    let locked = text.replacen("\tdecq\t%rax\n", "\tlock\t\tdecq\t(%rdi)\n", 1);
    assert_eq!(fast(&locked, "h").locked, 1, "behind a call");
}

#[test]
fn loops_and_functions_that_call_themselves_end() {
    let text = "\
f:
.LBB0_1:
\tdecq\t%rdi
\tjne\t.LBB0_1
\tretq
.Lfunc_end0:
r:
\tcallq\tr
\tretq
.Lfunc_end1:
e:
\tud2
.Lfunc_end2:
";
    assert_eq!(fast(text, "f").instructions, 3);
    assert_eq!(fast(text, "r").calls, 1);
    let mut listing = Listing::default();
    listing.read(text);
    assert_eq!(listing.fast_path("e"), None);
    assert_eq!(listing.fast_path("nothing"), None);
}

#[test]
fn operands_say_what_is_loaded_and_stored() {
    for (text, loads, stores) in [
        ("movq (%rdi,%rax,8), %rcx", 1, 0),
        ("movq %rcx, 8(%rdi)", 0, 1),
        ("movl %fs:(%rcx), %ebx", 1, 0),
        ("movq $7, (%rax)", 0, 1),
        ("leaq 8(%rdi), %rax", 0, 0),
        ("addq 8(%rax), %rbx", 1, 0),
        ("addq %rbx, 8(%rax)", 1, 1),
        ("incq 8(%rbx)", 1, 1),
        ("cmpl 36(%rbx), %eax", 1, 0),
        ("cmpl %eax, 36(%rbx)", 1, 0),
        ("cmpxchgq %rcx, (%rdi)", 1, 1),
        ("imulq $56, (%rcx), %rcx", 1, 0),
        ("mulq (%rcx)", 1, 0),
        ("pushq 8(%rax)", 1, 1),
        ("callq *f@GOTPCREL(%rip)", 1, 1),
        ("callq f", 0, 1),
        ("jmpq *%rax", 0, 0),
        ("sete (%rax)", 0, 1),
        ("vmovups %ymm0, (%rdi)", 0, 1),
        ("nopw (%rax,%rax)", 0, 0),
    ] {
        let (mnemonic, rest) = split_word(text);
        let counts = count(mnemonic, &split_operands(rest), false);
        assert_eq!((counts.loads, counts.stores), (loads, stores), "{text}");
    }
}
