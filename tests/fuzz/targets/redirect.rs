//! Ports and subnets as somebody writes them: refused, or written again as they were understood.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portunus_sidecar::redirect::{Ports, Settings, Subnets, render};

fuzz_target!(|text: &str| {
    let mut settings = Settings::default();
    if let Ok(ports) = text.parse::<Ports>() {
        let again: Ports = ports.to_string().parse().expect("what we write can be read");
        assert_eq!(again.to_string(), ports.to_string());
        assert!(
            (0..=u16::MAX)
                .step_by(97)
                .all(|port| ports.contains(port) == again.contains(port))
        );
        settings.skip_inbound_ports = ports;
    }
    if let Ok(subnets) = text.parse::<Subnets>() {
        let again: Subnets = subnets.to_string().parse().expect("what we write can be read");
        assert_eq!(again.to_string(), subnets.to_string());
        assert!(subnets.iter().all(|subnet| again.contains(subnet.address())));
        settings.skip_subnets = subnets;
    }
    // Refused with a sentence, or a whole ruleset.
    match render(&settings) {
        Ok(rules) => assert!(!rules.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
