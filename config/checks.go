package config

import (
	"postern/access"
	"postern/auth"
	"postern/client"
	"postern/dkim"
	"postern/dmarcreport"
	"postern/greylist"
	"postern/headercheck"
	"postern/internal/conf"
	"postern/known"
	"postern/limit"
	"postern/pipeline"
	"postern/policy"
	"postern/provider"
	"postern/rbl"
	"postern/spf"
	"postern/verify"
)

// Checks are the sections of the checks. A new check gets its field here and
// its line in sections, and is named nowhere else in this package.
type Checks struct {
	Access   access.Config      `toml:"access"`
	Provider provider.Config    `toml:"provider"`
	Client   client.Config      `toml:"client"`
	RBL      rbl.Config         `toml:"rbl"`
	SPF      spf.Config         `toml:"spf"`
	Limit    limit.Config       `toml:"limit"`
	Verify   verify.Config      `toml:"verify"`
	Known    known.Config       `toml:"known"`
	Greylist greylist.Config    `toml:"greylist"`
	Auth     auth.Config        `toml:"auth"`
	Reports  dmarcreport.Config `toml:"dmarc_reports"`
	Headers  headercheck.Config `toml:"headers"`
	DKIM     dkim.Config        `toml:"dkim"`
}

// sections are all of them.
func (c *Checks) sections() []checkSection {
	return []checkSection{
		of("access", &c.Access, access.DefaultConfig, &access.Traits),
		of("provider", &c.Provider, provider.DefaultConfig, &provider.Traits),
		of("client", &c.Client, client.DefaultConfig, &client.Traits),
		of("rbl", &c.RBL, rbl.DefaultConfig, &rbl.Traits),
		of("spf", &c.SPF, spf.DefaultConfig, &spf.Traits),
		of("limit", &c.Limit, limit.DefaultConfig, &limit.Traits),
		of("verify", &c.Verify, verify.DefaultConfig, &verify.Traits),
		of("known", &c.Known, known.DefaultConfig, &known.Traits),
		of("greylist", &c.Greylist, greylist.DefaultConfig, &greylist.Traits),
		of("auth", &c.Auth, auth.DefaultConfig, nil),
		of("dmarc_reports", &c.Reports, dmarcreport.DefaultConfig, nil),
		of("headers", &c.Headers, headercheck.DefaultConfig, nil),
		of("dkim", &c.DKIM, dkim.DefaultConfig, nil),
	}
}

// checkSection is the section of one check.
type checkSection struct {
	name  string // of the section, and of the check in chains
	cfg   settings
	reset func() // to the defaults
	// traits are what a chain must know of the check; nil: none can name it.
	traits *policy.Traits
}

// settings are what every check's section can do; prefix is its name.
type settings interface {
	Validate(prefix string, fs *conf.Faults)
}

// What a section can do besides.
type (
	// filler sets keys by others; given tells which of its keys the files give.
	filler interface {
		Fill(given func(key string) bool)
	}
	// warner knows what an administrator should know and can live with.
	warner interface {
		Warnings(prefix string) conf.Faults
	}
	// unchained says what does not happen because no chain has the check, ""
	// when nothing is missed.
	unchained interface {
		WithoutChain(prefix string) string
	}
	// unseen says what does not happen because there is no milter door, "" when
	// nothing is missed.
	unseen interface {
		WithoutMilter(prefix string) string
	}
	// unsure says what does not happen because nothing is authenticated, "" when
	// nothing is missed.
	unsure interface {
		WithoutAuth(prefix string) string
	}
	// chained names chains, by the keys that name them.
	chained interface {
		NamesChains(prefix string) map[string]string
	}
	// secretive names files that hold secrets, by the keys that name them.
	secretive interface {
		Secrets(prefix string) map[string]string
	}
)

func of[C any, P interface {
	*C
	settings
}](name string, cfg P, defaults func() C, traits *policy.Traits,
) checkSection {
	return checkSection{name, cfg, func() { *cfg = defaults() }, traits}
}

// fill has the sections set what the files leave out.
func (c *Checks) fill(given func(key string) bool) {
	for _, s := range c.sections() {
		if f, ok := s.cfg.(filler); ok {
			f.Fill(func(key string) bool { return given(s.name + "." + key) })
		}
	}
}

func defaultChecks() (c Checks) {
	for _, s := range c.sections() {
		s.reset()
	}
	return c
}

// describe returns the checks that a chain can name, with what it must know of
// them.
func (c *Checks) describe() pipeline.Describe {
	out := pipeline.Describe{}
	for _, s := range c.sections() {
		if s.traits != nil {
			out[s.name] = *s.traits
		}
	}
	return out
}
