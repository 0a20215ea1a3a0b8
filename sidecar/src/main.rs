//! The sidecar's command line.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_long};
use std::io::{self, Write as _};
use std::process::ExitCode;

use portunus_sidecar::config::{self, Command, Config, Limits, Redirect, RedirectAction, Refusal};
use portunus_sidecar::{app, redirect};
use tracing::{error, info, warn};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line or a setting is wrong (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// A fault in the proxy itself (EX_SOFTWARE).
const SOFTWARE: u8 = 70;
/// The system refused something (EX_OSERR).
const SYSTEM: u8 = 71;

fn main() -> ExitCode {
    give_back_at_once();
    match config::read(std::env::args_os(), &environment(), Limits::of_this_process()) {
        Ok(Command::Proxy(config)) => proxy(*config, app::copies::make_quick()),
        Ok(Command::PrintConfig(config)) => {
            warn_at_terminal(&config.warnings);
            println!("{:#}", config.understood);
            ExitCode::SUCCESS
        }
        Ok(Command::Redirect(settings)) => redirect(&settings),
        Ok(Command::Version) => {
            println!("sidecar {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Err(Refusal::Usage(said)) => {
            // Help that was asked for comes by this way too; it goes to standard output and is no error.
            let wrong = said.use_stderr();
            match said.print() {
                Ok(()) if !wrong => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            }
        }
        Err(Refusal::Mistakes(mistakes)) => {
            eprintln!("sidecar: {mistakes}");
            ExitCode::from(USAGE)
        }
    }
}

fn proxy(config: Config, copies: io::Result<()>) -> ExitCode {
    if let Err(why) = app::log::start(config.log_level.clone(), config.log_format) {
        eprintln!("sidecar: cannot log: {why}");
        return ExitCode::from(SOFTWARE);
    }
    end_on_panic();
    keep_small();
    for warning in &config.warnings {
        warn!("{warning}");
    }
    if let Err(why) = copies {
        info!(
            "copies of memory may be slow on this processor: the program could not start again to have others: {why}"
        );
    }
    let code = match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!("{why}");
            ExitCode::from(why.exit_code())
        }
    };
    portunus_logbook::flush();
    code
}

fn redirect(said: &Redirect) -> ExitCode {
    warn_at_terminal(&said.warnings);
    let settings = redirect::Settings {
        outbound_port: said.proxy_outbound,
        inbound_port: said.proxy_inbound,
        admin_port: said.proxy_admin,
        proxy_uid: said.proxy_uid,
        skip_inbound_ports: said.skip_inbound_ports.clone(),
        skip_outbound_ports: said.skip_outbound_ports.clone(),
        skip_subnets: said.skip_subnets.clone(),
        ..Default::default()
    };
    let done = match said.action {
        RedirectAction::Install => redirect::install(&settings).map(|outcome| outcome.to_string()),
        RedirectAction::Print => redirect::render(&settings),
        RedirectAction::Remove => redirect::remove().map(|removal| removal.to_string()),
    };
    match done {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("sidecar: {why}");
            ExitCode::from(match why {
                redirect::Error::Settings(_) => USAGE,
                _ => SYSTEM,
            })
        }
    }
}

/// Says what is odd where there is no log yet: beside the answer, not in it.
fn warn_at_terminal(warnings: &[String]) {
    for warning in warnings {
        // Nobody who reads it is no reason not to do what was asked for.
        let _ = writeln!(io::stderr(), "sidecar: {warning}");
    }
}

/// A panic anywhere ends the process: a proxy of which a part is dead would hold its pod's calls without carrying them,
/// and nobody would start it again.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        error!("this is a fault in the proxy, which ends: {panic}");
        portunus_logbook::flush();
        std::process::exit(i32::from(SOFTWARE));
    }));
}

/// Asks the kernel for small pages. Where it gives huge ones to everybody, each part of the heap that is begun costs 2 MiB;
/// that is more than an idle proxy has altogether. A kernel that cannot is no reason not to start.
fn keep_small() {
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Memory that the heap has no use for goes back to the kernel when it is freed, and not a second later: the heap has no
/// clock, so what a burst of connections has left would stay until somebody allocates again. `MIMALLOC_PURGE_DELAY` wins.
#[allow(unsafe_code)]
fn give_back_at_once() {
    // SAFETY: as mimalloc.h has it. It stores a number in a table, and leaves alone what is none of it.
    unsafe extern "C" {
        safe fn mi_option_set_default(option: c_int, value: c_long);
    }
    /// `mi_option_purge_delay`, milliseconds.
    const PURGE_DELAY: c_int = 15;
    mi_option_set_default(PURGE_DELAY, 0);
}

/// The variables that may be settings, ours and OpenTelemetry's.
fn environment() -> BTreeMap<String, String> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let all = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    all.filter(|(name, _)| name.starts_with("PORTUNUS_") || name.starts_with("OTEL_"))
        .collect()
}
