package config

import (
	"testing"

	"postern/docs/tutorial/tld"
	"postern/internal/conf"
)

// tutorial is a Checks as docs/new-check.md makes it.
type tutorial struct {
	TLD tld.Config `toml:"tld"`
}

func (c *tutorial) sections() []checkSection {
	return []checkSection{
		of("tld", &c.TLD, tld.DefaultConfig, &tld.Traits),
	}
}

func TestTheTutorialsSection(t *testing.T) {
	var c tutorial
	s := c.sections()[0]
	s.reset()
	if want := tld.DefaultConfig(); c.TLD.Reply != want.Reply || c.TLD.Timeout != want.Timeout {
		t.Errorf("%+v, want the defaults", c.TLD)
	}
	d := newDecoder(&c, func(string) any { return nil })
	d.document("f", []byte("[tld]\nrefuse = [\"co.uk\"]\n"))
	d.finish()
	var fs conf.Faults
	s.cfg.Validate(s.name, &fs)
	d.locate(fs)
	if got, want := conf.Faults(append(d.faults, fs...)).Error(), `f:2:11: tld.refuse[0]: "co.uk" is no top-level domain`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if s.traits != &tld.Traits {
		t.Error("a chain cannot name it")
	}
}
