//! What scanners find at the ports of the mesh and of control: TLS 1.3 and three groups, and nothing to resume.
