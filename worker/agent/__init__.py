"""One actor per node that starts rank processes, forked or spawned, and watches them."""
