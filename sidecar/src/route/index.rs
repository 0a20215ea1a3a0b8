//! Services by an address: who has an endpoint there, and which names lead there.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::ServiceKey;

/// Services by the addresses that each of them has.
#[derive(Default)]
pub(super) struct Index(HashMap<SocketAddr, Vec<ServiceKey>>);

impl Index {
    /// The services that have the address.
    pub(super) fn at(&self, addr: SocketAddr) -> &[ServiceKey] {
        self.0.get(&addr).map_or(&[], |services| services)
    }

    /// The service has it from now on.
    pub(super) fn add(&mut self, addr: SocketAddr, service: ServiceKey) {
        let services = self.0.entry(addr).or_default();
        if !services.contains(&service) {
            services.push(service);
        }
    }

    /// The service has it no more.
    pub(super) fn remove(&mut self, addr: SocketAddr, service: ServiceKey) {
        if let Some(services) = self.0.get_mut(&addr) {
            services.retain(|other| *other != service);
            if services.is_empty() {
                self.0.remove(&addr);
            }
        }
    }
}
