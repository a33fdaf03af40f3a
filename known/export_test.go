package known

// ConfigOf returns a check's settings.
func ConfigOf(c *Check) Config { return c.cfg }
