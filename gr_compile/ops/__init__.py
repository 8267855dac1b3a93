"""The jagged operators `gr::*`: schema, exact fake, reference in plain torch, and autograd formula."""
