//! Who the members are, their health, who serves next, recovery.
