package pipeline

import (
	"slices"
	"time"

	"postern/internal/conf"
	"postern/policy"
)

// Purposes of a chain.
const (
	PurposeInbound = ""      // may refuse, never permits
	PurposeRelay   = "relay" // may answer OK, which ends Postfix's restriction list
)

// DefaultName is the chain for requests that name none.
const DefaultName = "inbound"

// ChainConfig is one [chains.NAME] section: the checks that a request goes
// through and the order in which it does.
type ChainConfig struct {
	// Purpose is "" for a chain that only refuses, or "relay" for one whose
	// permits are handed to Postfix as OK. Default "".
	Purpose string `toml:"purpose"`
	// Checks are the names of the checks, in the order in which they run.
	// A check without settings has nothing to say and is left out.
	Checks []string `toml:"checks"`
	// Exempt are the checks of other chains that a recipient whom this chain has
	// permitted is exempt from, in the same transaction. Only for a chain with
	// purpose = "relay". A check that no other chain has may stand here. Default
	// ["rbl", "client", "spf", "greylist", "auth"].
	Exempt *[]string `toml:"exempt"`
	// Mode is "enforce", "shadow" (decide and log, always answer "no
	// objection") or "off" (answer at once). Default "enforce".
	Mode policy.Mode `toml:"mode"`
	// Stages are the SMTP stages at which the chain decides; at others the
	// answer is "no objection". Default: all at which Postfix asks.
	Stages []policy.Stage `toml:"stages"`
	// Budget is the most time a decision may take, all checks together. Keep
	// it well below Postfix's smtpd_policy_service_timeout. Default "20s".
	Budget conf.Duration `toml:"budget"`
	// ErrorReply is what the client reads when a check with on_error =
	// "defer" could not decide. Placeholders: {check}. Default "451 4.3.0
	// Temporary local problem, please try again later".
	ErrorReply string `toml:"error_reply"`
}

var errorReply = policy.Reply{Code: 451, Enhanced: "4.3.0"}

// exemptByDefault judge who a stranger is; a client that may relay is none.
var exemptByDefault = []string{"rbl", "client", "spf", "greylist", "auth"}

// exempt returns the checks of other chains that a permit exempts from.
func (c *ChainConfig) exempt() []string {
	if c.Exempt == nil {
		return exemptByDefault
	}
	return *c.Exempt
}

// DefaultChain returns the values of a chain that sets nothing.
func DefaultChain() ChainConfig {
	return ChainConfig{
		Budget:     conf.Duration(20 * time.Second),
		ErrorReply: "451 4.3.0 Temporary local problem, please try again later",
	}
}

// DefaultChains returns the chains of a configuration that names none.
func DefaultChains() map[string]ChainConfig {
	c := DefaultChain()
	c.Checks = []string{"access", "provider", "client", "rbl", "spf", "verify", "greylist"}
	return map[string]ChainConfig{DefaultName: c}
}

// Validate reports what is wrong with the chain by itself; prefix is its full
// key, "chains.inbound". Names of checks are the business of [New].
func (c *ChainConfig) Validate(prefix string, fs *conf.Faults) {
	if c.Purpose != PurposeInbound && c.Purpose != PurposeRelay {
		fs.Keyf(prefix+".purpose", "unknown purpose %q (\"relay\", or leave it out)", c.Purpose)
	}
	if d := c.Budget.D(); d < 100*time.Millisecond || d > 90*time.Second {
		fs.Keyf(prefix+".budget", "%v is out of range: 100ms to 90s, since Postfix gives up after 100s", c.Budget)
	}
	if _, err := policy.ParseTemplate(c.ErrorReply, errorReply, "check"); err != nil {
		fs.Keyf(prefix+".error_reply", "%v", err)
	}
	for i, name := range c.Checks {
		if slices.Contains(c.Checks[:i], name) {
			fs.Keyf(index(prefix+".checks", i), "%q is already in this chain", name)
		}
	}
}

// validateExempt reports names that stand for no check, or for one that is
// about more than who the client is: what access lists and providers say of it
// is not undone by a permit, which may have come from them.
func (c *ChainConfig) validateExempt(prefix string, nearest func(string) string, fs *conf.Faults) {
	if c.Exempt == nil {
		return
	}
	key := prefix + ".exempt"
	if c.Purpose != PurposeRelay {
		fs.Keyf(key, "only a chain with purpose = \"relay\" permits anything that could be exempt")
		return
	}
	for i, name := range *c.Exempt {
		switch {
		case name == "access" || name == "provider":
			fs.Keyf(index(key, i), "%q also says who may relay, and always runs", name)
		case slices.Contains((*c.Exempt)[:i], name):
			fs.Keyf(index(key, i), "%q stands here already", name)
		case slices.Contains(conf.Skippable, name), name == "auth":
		case nearest(name) != "":
			fs.Keyf(index(key, i), "unknown check %q, did you mean %q?", name, nearest(name))
		default:
			fs.Keyf(index(key, i), "unknown check %q (one of auth, client, greylist, known, limit, rbl, spf, verify)", name)
		}
	}
}

// Describe is what validation must know of a check that is not built yet.
type Describe map[string]policy.Traits

// ValidateOrder reports names that are no checks, there and in Exempt, checks
// that must be last and are not, and checks that can never run at the chain's stages. nearest
// proposes a name for a misspelt one, "" for none.
func (c *ChainConfig) ValidateOrder(prefix string, checks Describe, nearest func(string) string, fs *conf.Faults) {
	c.validateExempt(prefix, nearest, fs)
	stages := c.stageSet()
	for i, name := range c.Checks {
		key := index(prefix+".checks", i)
		traits, ok := checks[name]
		switch {
		case !ok && nearest(name) != "":
			fs.Keyf(key, "unknown check %q, did you mean %q?", name, nearest(name))
		case !ok:
			fs.Keyf(key, "unknown check %q", name)
		case traits.Last && i != len(c.Checks)-1:
			fs.Keyf(key, "%q must be the last check of a chain: it acts only when no other check refused", name)
		case traits.Stages&stages == 0:
			fs.Keyf(key, "%q can never run at the stages of this chain", name)
		}
	}
}

func (c *ChainConfig) stageSet() policy.StageSet {
	if len(c.Stages) == 0 {
		return policy.AllStages
	}
	return policy.Stages(c.Stages...)
}
