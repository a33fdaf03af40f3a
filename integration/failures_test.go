package integration

import (
	"os"
	"strings"
	"testing"
)

// What docs/failures.md says of a dependency that is down is what a client is
// told. Nothing listens at the addresses here.
func TestWhatIsDown(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/failures.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	const (
		down  = "127.0.0.1:9" // nobody
		route = "[[verify.route]]\ndomains = [\"example.com\"]\n"
		redis = "[store]\nkind = \"redis\"\npath = \"{dir}/state.db\"\nredis = { addrs = [\"" + down + "\"] }\n"
		alone = "[store]\nkind = \"redis\"\nredis = { addrs = [\"" + down + "\"], fallback = \"pass\" }\n"
		list  = "lists = [\"bl.example*3\"]\n"
	)
	for _, tt := range []struct {
		name, config string
		setting      string // as the page has it
		want         string // what the client reads, behind the code; "": nothing
		degraded     bool
	}{
		{"DNS lists", "[chains.inbound]\nchecks = [\"rbl\"]\n[rbl]\n" + list, "", "", true},
		{"DNS lists, to defer", "[chains.inbound]\nchecks = [\"rbl\"]\n[rbl]\non_error = \"defer\"\n" + list, `rbl.on_error = "defer"`, "451 4.3.0 Temporary local problem, please try again later", true},
		{"resolver, spf", "[chains.inbound]\nchecks = [\"spf\"]\n", "", "", false},
		{"resolver, spf, to defer", "[chains.inbound]\nchecks = [\"spf\"]\n[spf.mail_from]\ntemperror = \"defer\"\n", `spf.mail_from.temperror = "defer"`,
			"451 4.4.3 SPF: the record of example.org cannot be looked up, please try again later", false},
		{"resolver, client", "[chains.inbound]\nchecks = [\"client\"]\n[client]\nmode = \"enforce\"\n", "", "", false},
		{"resolver, client, to defer", "[chains.inbound]\nchecks = [\"client\"]\n[client]\ndefer_unable = [\"sender\"]\n", `client.defer_unable = ["sender"]`,
			"451 4.4.3 The sender's domain example.org cannot be looked up, please try again later", false},
		{"Redis, greylist", "[chains.inbound]\nchecks = [\"greylist\"]\n[greylist]\nprofile = \"strict\"\n" + redis, "", "450 4.2.0 Greylisted", false},
		{"Redis, limit", "[chains.inbound]\nchecks = [\"limit\"]\n[[limit.rule]]\nname = \"one\"\nrate = \"1/1h\"\n" + redis, "", "450 4.7.1 Too much mail", false},
		{"Redis, pass, greylist", "[chains.inbound]\nchecks = [\"greylist\"]\n[greylist]\nprofile = \"strict\"\n" + alone, `store.redis.fallback = "pass"`, "", true},
		{"Redis, pass, greylist, to defer", "[chains.inbound]\nchecks = [\"greylist\"]\n[greylist]\nprofile = \"strict\"\non_error = \"defer\"\n" + alone, `greylist.on_error = "defer"`,
			"451 4.3.0 Temporary local problem, please try again later", true},
		{"Redis, pass, limit", "[chains.inbound]\nchecks = [\"limit\"]\n[[limit.rule]]\nname = \"one\"\nrate = \"1/1h\"\n" + alone, `store.redis.fallback = "pass"`, "", true},
		{"Redis, pass, limit, to defer", "[chains.inbound]\nchecks = [\"limit\"]\n[limit]\non_error = \"defer\"\n[[limit.rule]]\nname = \"one\"\nrate = \"1/1h\"\n" + alone, `limit.on_error = "defer"`,
			"451 4.3.0 Temporary local problem, please try again later", true},
		{"next hop", "[chains.inbound]\nchecks = [\"verify\"]\n" + route + "sources = [\"callout\"]\nnext_hop = \"[127.0.0.1]:9\"\n", "",
			"450 4.1.1 not verified yet, please try again later", false},
		{"next hop, to accept", "[chains.inbound]\nchecks = [\"verify\"]\n[verify]\nwhen_down = \"accept\"\n" + route + "sources = [\"callout\"]\nnext_hop = \"[127.0.0.1]:9\"\n", `verify.when_down = "accept"`, "", false},
		{"LDAP", "[chains.inbound]\nchecks = [\"verify\"]\n[[verify.ldap]]\nname = \"corp\"\nurls = [\"ldap://" + down + "\"]\nbase = \"dc=example\"\n" + route + "sources = [\"ldap:corp\"]\n", "",
			"450 4.1.1 not verified yet, please try again later", false},
		{"provider", "[chains.inbound]\nchecks = [\"provider\"]\n[provider]\nstate_dir = \"{dir}/providers\"\n[[provider.list]]\nname = \"office365\"\n", "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDaemon(t, "hostname = \"mx.example.com\"\n[dns]\nservers = [\""+down+"\"]\n"+tt.config)
			d.start()
			// The second time a rate of one would be exceeded, if it were counted.
			var got string
			for _, message := range []string{"1a2b.66f1c0de.1.0", "1a2b.66f1c0de.2.0"} {
				got = d.dial().MustAsk(t, sample("192.0.2.7", "ann@example.org", "bob@example.com").With("instance", message))
			}
			switch _, words, _ := strings.Cut(tt.want, " "); {
			case tt.want == "" && !strings.HasSuffix(got, "DUNNO"):
				t.Errorf("the client is told %q, want nothing", got)
			case tt.want != "" && !strings.Contains(got, words):
				t.Errorf("the client is told %q, want %q", got, tt.want)
			}
			for _, said := range []string{tt.setting, tt.want} {
				if !strings.Contains(page, said) && !strings.HasSuffix(tt.config, redis) { // as with Redis
					t.Errorf("docs/failures.md does not say %q", said)
				}
			}
			d.stop() // all of the log is written
			if degraded := d.decisions("degraded", "true"); (len(degraded) > 0) != tt.degraded {
				t.Errorf("%d decisions are degraded, want some: %v", len(degraded), tt.degraded)
			}
		})
	}
}
