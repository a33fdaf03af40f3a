package milter

import (
	"fmt"

	gomilter "github.com/d--j/go-milter"

	"postern/policy"
)

// macros are those that a session needs, by the stage at which they are sent
// (MILTER_README, "Macro names"). {tls_sni} is of Postfix 3.12.
var macros = map[gomilter.MacroStage][]gomilter.MacroName{
	gomilter.StageConnect: {"j", "v", "_", "{daemon_addr}", "{daemon_port}", "{client_ptr}", "{client_resolve}"},
	gomilter.StageHelo:    {"{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}", "{tls_sni}"},
	gomilter.StageMail:    {"i", "{auth_type}", "{auth_authen}", "{auth_author}"},
	gomilter.StageRcpt:    {"i"},
	gomilter.StageData:    {"i"},
	gomilter.StageEOH:     {"i"},
	gomilter.StageEOM:     {"i"},
}

// library returns the library's server for one address.
func (d *entrance) library() *gomilter.Server {
	options := []gomilter.Option{
		gomilter.WithWriteTimeout(0), // the guard's business
		gomilter.WithNegotiationCallback(func(theirs, _ uint32, actions, _ gomilter.OptAction, steps, _ gomilter.OptProtocol, _ gomilter.DataSize) (uint32, gomilter.OptAction, gomilter.OptProtocol, gomilter.DataSize, error) {
			if theirs < 2 {
				return 0, 0, 0, 0, fmt.Errorf("protocol version %d", theirs)
			}
			if a := d.agreed; a != (agreement{}) {
				return a.Version, a.Actions, a.Steps, gomilter.DataSize64K, nil
			}
			cfg := d.cfg.Load()
			wantActions, wantSteps := wanted(cfg, d.o.Handler.Wants(d.chain(cfg)), d.o.Dialogs != nil)
			// What an older version does not offer is done without.
			return min(theirs, gomilter.MaxServerProtocolVersion), actions & wantActions, steps & wantSteps, gomilter.DataSize64K, nil
		}),
		gomilter.WithDynamicMilter(func(version uint32, actions gomilter.OptAction, steps gomilter.OptProtocol, _ gomilter.DataSize) gomilter.Milter {
			return newSession(d, version, actions, steps)
		}),
	}
	for stage, names := range macros {
		options = append(options, gomilter.WithMacroRequest(stage, names))
	}
	return gomilter.NewServer(options...)
}

// wanted returns the actions and steps to ask for, no more than are used.
// joined is set when the policy door must not be asked before MAIL was heard.
func wanted(cfg *Config, w Wants, joined bool) (gomilter.OptAction, gomilter.OptProtocol) {
	actions := gomilter.OptSetMacros | gomilter.OptAddHeader
	// Nothing is done with commands that the MTA does not know.
	steps := gomilter.OptNoUnknown | gomilter.OptNoUnknownReply
	without := func(not bool, bits gomilter.OptProtocol) {
		if not {
			steps |= bits
		}
	}
	asks := func(s policy.Stage) bool { return cfg.Envelope && w.Stages.Has(s) }
	without(!asks(policy.StageConnect) && cfg.GreetPause == 0 && !w.Early, gomilter.OptNoConnReply)
	without(!asks(policy.StageHelo), gomilter.OptNoHeloReply)
	without(!cfg.Envelope && !joined, gomilter.OptNoMailReply)
	without(!cfg.Envelope, gomilter.OptNoRcptReply|gomilter.OptNoData|gomilter.OptNoDataReply)
	without(!w.Content, gomilter.OptNoHeaders|gomilter.OptNoEOH|gomilter.OptNoBody)
	without(true, gomilter.OptNoHeaderReply|gomilter.OptNoEOHReply)
	without(w.Content, gomilter.OptHeaderLeadingSpace)
	if w.Content && w.Bodies {
		// A chunk is answered, so that the rest of a body can be skipped.
		steps |= gomilter.OptSkip
		actions |= gomilter.OptChangeBody
	} else {
		steps |= gomilter.OptNoBody | gomilter.OptNoBodyReply
	}
	if w.Content {
		actions |= gomilter.OptChangeHeader
	}
	if w.Content || cfg.Envelope {
		actions |= gomilter.OptQuarantine | gomilter.OptAddRcpt | gomilter.OptAddRcptWithArgs | gomilter.OptRemoveRcpt
	}
	return actions, steps
}
