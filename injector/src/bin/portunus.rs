//! The `portunus` command line.

fn main() {
    eprintln!("not yet");
    std::process::exit(64);
}
