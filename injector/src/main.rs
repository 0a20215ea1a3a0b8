//! `injector control` and, later, `injector webhook`.

fn main() {
    eprintln!("not yet");
    std::process::exit(64);
}
