package access

import "postern/list"

type part struct {
	sources []string
	opts    list.Options
}

func (c *Config) parts(prefix string) []part { return nil }
