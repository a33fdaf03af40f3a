package postfix

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// usual is a gateway as docs/postfix.md has it.
const usualMain = `
myhostname = mx.example.com
mydestination = example.com
mynetworks = 127.0.0.0/8 10.0.0.0/8 [::1]/128
queue_directory = /var/spool/postfix
smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated,
    defer_unauth_destination
smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination, reject_unlisted_recipient,
    check_policy_service { inet:127.0.0.1:10040, timeout=25s, default_action=DUNNO }
smtpd_data_restrictions = permit_mynetworks, check_policy_service { inet:127.0.0.1:10040, timeout=25s, default_action=DUNNO }
smtpd_milters = { inet:127.0.0.1:10041, default_action=accept }
`

const usualMaster = `
smtp      inet  n       -       y       -       -       smtpd
submission inet n       -       y       -       -       smtpd
  -o syslog_name=postfix/submission -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject
pickup    unix  n       -       y       60      1       pickup
`

func setup(t *testing.T, main, master string) *Setup {
	t.Helper()
	s := &Setup{}
	var err error
	if s.Main, err = ParseMain("main", strings.NewReader(main)); err != nil {
		t.Fatal(err)
	}
	if s.Services, err = ParseMaster("master", strings.NewReader(master)); err != nil {
		t.Fatal(err)
	}
	return s
}

func ours() *Ours {
	return &Ours{
		Hostname: "mx.example.com", Policy: []Endpoint{{Network: "unix", Path: "/run/postern/policy.sock"}, {Network: "tcp", Host: "127.0.0.1", Port: "10040"}},
		Milter: []Endpoint{{Network: "tcp", Host: "127.0.0.1", Port: "10041"}}, Budget: 20 * time.Second, Content: time.Minute, RBL: true, Greylist: true, Verify: true,
		RBLZones: []string{"zen.spamhaus.org"}, Domains: []string{"relay.example", ".sub.example"}, LooksAtContent: true, MaxConnections: 4096, Relay: []string{"relay"},
	}
}

// with replaces a parameter of the usual main.cf.
func with(name, value string) string {
	lines := strings.Split(usualMain, "\n")
	var out []string
	skip := false
	for _, l := range lines {
		if skip && strings.HasPrefix(l, " ") {
			continue
		}
		if skip = strings.HasPrefix(l, name+" ="); !skip {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n") + "\n" + name + " = " + value + "\n"
}

const (
	service = "check_policy_service { inet:127.0.0.1:10040, timeout=25s, default_action=DUNNO }"
	relay   = "check_policy_service { inet:127.0.0.1:10040, timeout=25s, default_action=DUNNO, policy_context=relay }"
)

func TestCheck(t *testing.T) {
	if got := Check(setup(t, usualMain, usualMaster), ours()); len(got) != 0 {
		t.Errorf("the usual one: %+v", got)
	}
	for _, tt := range []struct {
		slug         string
		sev          Severity
		main, master string
		edit         func(*Ours)
	}{
		{"not-asked", Error, with("smtpd_recipient_restrictions", "permit_mynetworks, reject_unauth_destination") + "smtpd_data_restrictions =\n", "", nil},
		{"milter-missing", Error, with("smtpd_milters", ""), "", nil},
		{"rbl-twice", Warning, with("smtpd_client_restrictions", "permit_mynetworks, reject_rbl_client zen.spamhaus.org"), "", nil},
		{"rbl-twice", Warning, with("smtpd_sender_restrictions", "reject_rhsbl_sender dbl.spamhaus.org=127.0.1.2"), "", nil},
		{"rbl-twice", Note, with("postscreen_dnsbl_sites", "zen.spamhaus.org=127.0.0.[2..11]*3, other.example"), "", nil},
		{"verify-twice", Warning, with("smtpd_recipient_restrictions", "reject_unauth_destination, reject_unverified_recipient, "+service), "", nil},
		{"open-relay", Error, with("smtpd_relay_restrictions", "permit_mynetworks, permit, defer_unauth_destination"), "", nil},
		{"open-relay", Error, with("smtpd_relay_restrictions", "permit_mynetworks") + "smtpd_recipient_restrictions = permit_mynetworks, " + service + "\n", "", nil},
		{"asked-often", Warning, with("smtpd_sender_restrictions", service), "", nil},
		{"relay-chain-elsewhere", Error, with("smtpd_recipient_restrictions", "reject_unauth_destination, "+relay), "", nil},
		{"relay-chain-open", Error, with("smtpd_relay_restrictions", "permit_mynetworks, defer_unauth_destination, "+relay), "", nil},
		{"relay-refused", Error, with("smtpd_relay_restrictions", "permit_mynetworks, permit_auth_destination, "+relay+", reject"), "", nil},
		{"policy-before-auth-destination", Warning, with("smtpd_recipient_restrictions", "permit_mynetworks, "+service+", reject_unauth_destination"), "", nil},
		{"policy-before-auth-destination", Error, with("smtpd_recipient_restrictions", "permit_mynetworks, "+service+", reject_unauth_destination") + "smtpd_relay_restrictions =\n", "", nil},
		{"policy-before-auth-destination", Error, with("smtpd_recipient_restrictions", "permit_mynetworks, "+service+", reject_unauth_destination") + "smtpd_relay_before_recipient_restrictions = no\n", "", nil},
		{"no-default-action", Warning, with("smtpd_recipient_restrictions", "reject_unauth_destination, check_policy_service inet:127.0.0.1:10040"), "", nil},
		{"policy-timeout", Warning, with("smtpd_recipient_restrictions", "reject_unauth_destination, check_policy_service { inet:127.0.0.1:10040, timeout=20s, default_action=DUNNO }"), "", nil},
		{"policy-timeout", Warning, with("smtpd_policy_service_timeout", "10s") + "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service { inet:127.0.0.1:10040, default_action=DUNNO }\n", "", nil},
		{"socket-unreachable", Error, with("smtpd_recipient_restrictions", "reject_unauth_destination, check_policy_service { unix:/run/postern/policy.sock, timeout=25s, default_action=DUNNO }"), "", nil},
		{"socket-missing", Note, with("smtpd_recipient_restrictions", "reject_unauth_destination, check_policy_service { unix:/run/postern/policy.sock, timeout=25s, default_action=DUNNO }"), strings.ReplaceAll(usualMaster, " y ", " n "), nil},
		{"greylist-twice", Warning, with("smtpd_recipient_restrictions", "reject_unauth_destination, check_policy_service inet:127.0.0.1:10023, "+service), "", nil},
		{"other-policy-service", Warning, with("smtpd_recipient_restrictions", "reject_unauth_destination, check_policy_service unix:private/policyd-spf, "+service), "", nil},
		{"other-policy-service", Note, with("smtpd_recipient_restrictions", "reject_unauth_destination, check_policy_service inet:127.0.0.1:7777, "+service), "", nil},
		{"other-milter", Warning, with("smtpd_milters", "inet:localhost:8891, { inet:127.0.0.1:10041, default_action=accept }"), "", nil},
		{"milter-default-action", Warning, with("smtpd_milters", "inet:127.0.0.1:10041"), "", nil},
		{"milter-default-action", Error, usualMain, "", func(o *Ours) { o.RelaysByContent = true }},
		{"milter-timeout", Warning, with("milter_content_timeout", "30s"), "", nil},
		{"milter-timeout", Warning, with("milter_command_timeout", "10s"), "", nil},
		{"filter-twice", Warning, with("content_filter", "scan:127.0.0.1:10025"), usualMaster + "127.0.0.1:10026 inet n - y - - smtpd -o content_filter= -o smtpd_recipient_restrictions=permit_mynetworks,reject\n", nil},
		{"delay-reject", Warning, with("smtpd_delay_reject", "no"), "", nil},
		{"peername-lookup", Warning, with("smtpd_peername_lookup", "no"), "", nil},
		{"soft-bounce", Warning, with("soft_bounce", "yes"), "", nil},
		{"unsigned-local", Warning, usualMain, "", func(o *Ours) { o.Signs = true }},
		{"connections", Warning, usualMain, "", func(o *Ours) { o.MaxConnections = 150 }},
		{"mynetworks-wide", Error, with("mynetworks", "127.0.0.0/8 0.0.0.0/0"), "", nil},
		{"mynetworks-wide", Error, with("mynetworks", "198.51.0.0/15"), "", nil},
		{"mynetworks-wide", Error, with("mynetworks", "[2001:db8::]/29"), "", nil},
		{"mynetworks-wide", Warning, strings.ReplaceAll(with("mynetworks_style", "class"), "mynetworks = ", "other = "), "", nil},
		{"helo-name", Warning, with("smtp_helo_name", "localhost.localdomain"), "", nil},
		{"helo-name", Warning, with("myhostname", "gate"), "", func(o *Ours) { o.Hostname = "gate" }},
		{"hostname", Note, with("myhostname", "gate.example.com"), "", nil},
		{"loop", Error, with("relayhost", "[mx.example.com]"), "", nil},
		{"loop", Error, with("relay_transport", "smtp:[127.0.0.1]:25"), "", nil},
		{"loop", Error, usualMain, "", func(o *Ours) { o.Hops = []string{"[MX.example.com]:25"} }},
		{"unverified-recipients", Warning, with("relay_domains", "relay.example, other.example"), "", nil},
		{"unverified-recipients", Warning, with("relay_domains", "sub.example"), "", nil},
	} {
		o := ours()
		if tt.edit != nil {
			tt.edit(o)
		}
		master := tt.master
		if master == "" {
			master = usualMaster
		}
		got := Check(setup(t, tt.main, master), o)
		if !slices.ContainsFunc(got, func(f Finding) bool {
			return f.Slug == tt.slug && f.Severity == tt.sev && f.Text != "" && f.Where != ""
		}) {
			t.Errorf("%s: it is not found among %+v", tt.slug, got)
		}
		for i := 1; i < len(got); i++ {
			if rank(got[i].Severity) < rank(got[i-1].Severity) {
				t.Errorf("%s: not the worst first", tt.slug)
			}
		}
	}
	// What is near to a finding, and none.
	for name, main := range map[string]string{
		"a hop at another port":         with("relayhost", "[127.0.0.1]:2525"),
		"a hop elsewhere":               with("relayhost", "[smarthost.example]:587"),
		"a domain below a route":        with("relay_domains", "relay.example, a.sub.example"),
		"a table of domains":            with("relay_domains", "hash:/etc/postfix/relay_domains"),
		"recipients in a table":         with("relay_domains", "other.example") + "relay_recipient_maps = hash:/x\n",
		"a private network":             with("mynetworks", "10.0.0.0/8, 172.16.0.0/12, fd00::/8, 198.51.100.0/24"),
		"a relay chain where it may be": with("smtpd_relay_restrictions", "permit_mynetworks, permit_auth_destination, "+relay+", reject") + "smtpd_recipient_restrictions = permit_mynetworks, " + service + "\n",
		"a name for the restrictions":   with("gate", service) + "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination, $gate\n",
		"tempfail everywhere but here":  with("milter_default_action", "tempfail"),
	} {
		if got := Check(setup(t, main, usualMaster), ours()); len(got) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestRelease(t *testing.T) {
	find := func(defaults map[string]string) (slugs []string) {
		s := setup(t, usualMain, usualMaster)
		s.Defaults = defaults
		for _, f := range Check(s, ours()) {
			slugs = append(slugs, string(f.Severity)+" "+f.Slug)
		}
		return slugs
	}
	for _, tt := range []struct {
		defaults map[string]string
		want     []string
	}{
		{map[string]string{"mail_version": "3.7.11", "smtpd_forbid_bare_newline": "no", "smtpd_forbid_unauth_pipelining": "no"}, []string{"warning bare-newline", "note unauth-pipelining"}},
		{map[string]string{"mail_version": "3.9.1", "smtpd_forbid_bare_newline": "normalize", "smtpd_forbid_unauth_pipelining": "yes"}, nil},
		{map[string]string{"mail_version": "3.7.2"}, []string{"note bare-newline"}},
	} {
		if got := find(tt.defaults); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %q", tt.defaults, got)
		}
	}
}

// An action that a release does not know refuses everything.
func TestMilterShutdown(t *testing.T) {
	for version, want := range map[string]string{"3.5.25": "error milter-shutdown", "3.7.11": "error milter-shutdown", "3.7.20": "warning milter-default-action", "3.10.7": "error milter-shutdown", "3.10.13": "warning milter-default-action", "3.11.0": "warning milter-default-action", "3.12-20260101": "warning milter-default-action", "4.0": "warning milter-default-action", "": "warning milter-default-action"} {
		s := setup(t, with("smtpd_milters", "{ inet:127.0.0.1:10041, default_action=shutdown }"), usualMaster)
		s.Defaults = map[string]string{"mail_version": version, "smtpd_forbid_bare_newline": "normalize"}
		var got []string
		for _, f := range Check(s, ours()) {
			got = append(got, string(f.Severity)+" "+f.Slug)
		}
		if !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %s", version, got, want)
		}
	}
}

func TestBeside(t *testing.T) {
	text := Beside(setup(t, usualMain, usualMaster))
	for _, want := range []string{"       y       -       1       postscreen\n", "#   smtpd_client_connection_rate_limit = 60\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in %s", want, text)
		}
	}
	text = Beside(setup(t, usualMain+"smtpd_client_message_rate_limit = 7\n", "smtp inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\n"))
	if strings.Contains(text, "postscreen") || strings.Contains(text, "message_rate") || !strings.Contains(text, "connection_rate") {
		t.Errorf("what is there already is proposed: %s", text)
	}
}
