//! More than fifty secrets are planted wherever one can come in, and none of them is ever said.

mod asked;
mod carried;
mod plants;
mod told;
mod world;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portunus_logbook::is_control;
use support::{Mesh, wait_until};

use crate::collector::Export;
use plants::Plants;
pub(crate) use plants::hex;
use world::{Said, World};

#[test]
fn no_planted_secret_is_in_a_log_of_json_on_a_page_in_a_span_or_in_a_metric_sent_by_grpc() {
    support::test(|mesh| nothing_is_said(mesh, "json", "grpc"));
}

#[test]
fn no_planted_secret_is_in_a_log_of_text_on_a_page_in_a_span_or_in_a_metric_sent_by_http() {
    support::test(|mesh| nothing_is_said(mesh, "text", "http/protobuf"));
}

fn nothing_is_said(mesh: &Mesh, form: &str, protocol: &str) -> Result<()> {
    let mut plants = Plants::default();
    let mut world = World::new(mesh, form, protocol, &mut plants)?;
    carried::plant(&world, &mut plants)?;
    asked::plant(&world, &mut plants)?;
    let mut said = told::plant(&world, &mut plants)?;
    // Where a secret did not arrive that was to, its absence elsewhere would tell nothing.
    world.everything_arrived(&plants)?;
    ensure!(plants.len() >= 50, "only {} places were planted", plants.len());

    let patience = Duration::from_secs(15);
    wait_until(patience, "spans and metrics of both sidecars came", || {
        let spans = world.collector.spans().unwrap_or_default();
        let of = |name: &str| {
            spans
                .iter()
                .any(|(service, span)| service == name && span.name.contains("Answers"))
        };
        let metrics = world.collector.metrics().unwrap_or_default();
        of("caller") && of("server") && metrics.len() > 2
    })?;
    said.extend(world.pages()?);
    said.extend(world.end()?);
    let exports = world.collector.exports();
    let message = |(number, export): (usize, &Export)| Said {
        place: format!("export {number}, {}", export.path),
        bytes: export.message.to_vec(),
    };
    said.extend(exports.iter().enumerate().map(message));
    looked_at_everything(&said, form)?;

    let search = plants.search();
    let mut leaks = Vec::new();
    for Said { place, bytes } in &said {
        for found in search.of(bytes) {
            leaks.push(format!(
                "{} stands in {place} {}:\n    {}",
                found.planted, found.form, found.around
            ));
        }
    }
    println!(
        "{} places planted, {} looked at, {} bytes",
        plants.len(),
        said.len(),
        said.iter().map(|said| said.bytes.len()).sum::<usize>()
    );
    ensure!(leaks.is_empty(), "{} leaks:\n  {}", leaks.len(), leaks.join("\n  "));
    Ok(())
}

/// What is known to be said of the calls that carried the secrets is there.
fn looked_at_everything(said: &[Said], form: &str) -> Result<()> {
    let (access, level) = match form {
        "json" => (r#""method":"plant.Service/Answers""#, r#""level":"DEBUG""#),
        _ => (r#"method="plant.Service/Answers""#, " DEBUG "),
    };
    for (place, what) in [
        ("log of caller", access),
        ("log of server", access),
        ("log of caller", level),
        ("log of control", "a key was not certified"),
        ("log of control", "a manifest is wrong"),
        ("caller's /metrics", r#"grpc_method="Answers""#),
        ("server's /metrics", r#"grpc_method="Answers""#),
        ("caller's /config", "trace-collector"),
        ("caller's /endpoints", "10000"),
        ("caller's /proc/cmdline", "proxy"),
        ("control's /source", "mistake"),
        ("export", "plant.Service/Answers"),
        ("export", "portunus_build_info"),
    ] {
        let mut places = said.iter().filter(|said| said.place.contains(place));
        let found = places.any(|said| String::from_utf8_lossy(&said.bytes).contains(what));
        ensure!(found, "{what:?} is not in {place}: nothing was looked at there");
    }
    for Said { place, bytes } in said
        .iter()
        .filter(|said| said.place.contains("log of") || said.place.contains('/'))
    {
        let text = String::from_utf8_lossy(bytes);
        // Exports are no text, and arguments end in zeros.
        let is_text = !place.contains("export") && !place.contains("cmdline");
        let odd = text.chars().find(|char| *char != '\n' && is_control(*char));
        ensure!(odd.is_none() || !is_text, "there is {odd:?} in {place}");
    }
    let empty = said.iter().find(|said| said.bytes.is_empty());
    ensure!(
        empty.is_none(),
        "nothing is in {}",
        empty.context("there is one")?.place
    );
    Ok(())
}
