package greylist

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// fakeNames are generic below these domains.
type fakeNames []string

func (f fakeNames) Generic(name string, _ netip.Addr) bool {
	for _, suffix := range f {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

var testNames = fakeNames{".hoster.example"}

func TestIdentities(t *testing.T) {
	for _, tt := range []struct {
		addr, name, sender, spf, provider string
		match, credit                     string
	}{
		{"192.0.2.7", "", "ann@example.org", "", "", "net:192.0.2.0/24", "net:192.0.2.0/24 example.org"},
		{"2001:db8:1:2:3::4", "", "ann@example.org", "", "", "net:2001:db8:1:2::/64", "net:2001:db8:1:2::/64 example.org"},
		// A name is its owner's for mail of the owner's domain only.
		{"192.0.2.7", "mail.example.org", "ann@example.org", "", "", "org:example.org", "org:example.org"},
		{"192.0.2.7", "mail.example.org", "ann@news.example.org", "", "", "org:example.org", "org:example.org"},
		{"192.0.2.7", "a.b.example.co.uk", "ann@example.co.uk", "", "", "org:example.co.uk", "org:example.co.uk"},
		{"192.0.2.7", "mail.example.org", "ann@other.example", "", "", "org:example.org", "net:192.0.2.0/24 other.example"},
		{"192.0.2.7", "mail.example.org", "ann@notexample.org", "", "", "org:example.org", "net:192.0.2.0/24 notexample.org"},
		{"192.0.2.7", "co.uk", "ann@co.uk", "", "", "net:192.0.2.0/24", "net:192.0.2.0/24 co.uk"},
		{"192.0.2.7", "localhost", "ann@localhost", "", "", "net:192.0.2.0/24", "net:192.0.2.0/24 localhost"},
		// A hoster's name is nobody's, for his own domain too.
		{"192.0.2.7", "vps17.hoster.example", "ann@hoster.example", "", "", "net:192.0.2.0/24", "net:192.0.2.0/24 hoster.example"},
		{"192.0.2.7", "vps17.hoster.example", "ann@example.org", "", "", "net:192.0.2.0/24", "net:192.0.2.0/24 example.org"},
		{"192.0.2.7", "mail.example.org", "ann@sender.example", "sender.example", "", "spf:sender.example", "spf:sender.example"},
		// A provider's networks give no credit by themselves.
		{"192.0.2.7", "", "ann@example.org", "", "google", "provider:google", "net:192.0.2.0/24 example.org"},
		{"192.0.2.7", "mail.example.org", "ann@example.org", "", "google", "org:example.org", "org:example.org"},
		// Who names no domain could be anybody.
		{"192.0.2.7", "mail.example.org", "", "", "", "org:example.org", ""},
		{"192.0.2.7", "", "root", "", "", "net:192.0.2.0/24", ""},
		{"192.0.2.7", "mail.example.org", "", "mail.example.org", "", "spf:mail.example.org", "spf:mail.example.org"},
		{"192.0.2.7", "", "ann@[192.0.2.7]", "", "", "net:192.0.2.0/24", "net:192.0.2.0/24 [192.0.2.7]"},
		// Without an address, as far as a name can tell.
		{"", "mail.example.org", "ann@example.org", "", "", "org:example.org", "org:example.org"},
		{"", "mail.example.org", "ann@other.example", "", "", "org:example.org", ""},
	} {
		req := &policy.Request{
			Time: time.Unix(1e9, 0), Client: policy.Client{Name: tt.name}, Sender: mailaddr.Parse(tt.sender), Facts: policy.Facts{Provider: tt.provider},
		}
		if tt.addr != "" {
			req.Client.Addr = netip.MustParseAddr(tt.addr)
		}
		if tt.spf != "" {
			req.Facts.SPF = policy.SPF{Result: "pass", Domain: tt.spf}
		}
		m := newMemo(testNames)
		for range 2 { // the second time from memory
			if match, credit, ok := m.identities(req, 24, 64); !ok || match != tt.match || credit != tt.credit {
				t.Errorf("%s %s %s: %q and %q, want %q and %q", tt.addr, tt.name, tt.sender, match, credit, tt.match, tt.credit)
			}
		}
	}
	m := newMemo(testNames)
	for range 2 {
		if _, _, ok := m.identities(&policy.Request{}, 24, 64); ok {
			t.Error("nobody has an identity")
		}
	}
	if got, ok := networkOf(netip.MustParseAddr("192.0.2.7"), 33, 64); ok {
		t.Errorf("a network of 33 bits: %q", got)
	}
}

func TestIdentityFollowsTheFacts(t *testing.T) {
	names := fakeNames{}
	req := &policy.Request{
		Time: time.Unix(1e9, 0), Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Name: "mail.example.org"}, Sender: mailaddr.Parse("ann@example.org"),
	}
	m := newMemo(&names)
	is := func(what, want string) {
		t.Helper()
		if got, _, ok := m.identities(req, 24, 64); !ok || got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	is("a name", "org:example.org")
	req.Facts.SPF = policy.SPF{Result: "pass", Domain: "sender.example"}
	is("SPF passed", "spf:sender.example")
	req.Facts.SPF.Domain = "other.example"
	is("for another domain", "spf:other.example")
	for _, result := range []string{"fail", "softfail", "neutral", "none", "temperror", "permerror", ""} {
		req.Facts.SPF.Result = result
		is("SPF "+result, "org:example.org")
	}
	req.Facts.SPF = policy.SPF{Result: "pass"}
	is("SPF passed, for no domain", "org:example.org")
	if _, credit, _ := m.identities(req, 24, 64); credit != "org:example.org" {
		t.Errorf("credit %q", credit)
	}
	req.Sender = mailaddr.Parse("ann@other.example")
	if _, credit, _ := m.identities(req, 24, 64); credit != "net:192.0.2.0/24 other.example" {
		t.Errorf("credit for another sender %q", credit)
	}
	// What is remembered of a name is forgotten soon: the lists change.
	names = fakeNames{"example.org"}
	req.Time = req.Time.Add(memoFor)
	is("the name has become generic", "net:192.0.2.0/24")
	req.Client.Name, req.Client.ReverseName = "", "mail.example.org"
	is("a name that leads nowhere", "net:192.0.2.0/24")
	req.Facts.Provider = "office365"
	is("a provider", "provider:office365")
	req.Facts.Reset()
	req.Client.Addr = netip.MustParseAddr("192.0.3.7")
	is("another address", "net:192.0.3.0/24")
	if got, _ := matchIdentity(req, names, 32, 128); got != "net:192.0.3.7/32" {
		t.Errorf("by host: %q", got)
	}
}

// What is remembered of a client goes to no other one, whoever takes its place.
func TestMemoTellsClientsApart(t *testing.T) {
	m := newMemo(testNames)
	for range 2 {
		for i := range 4 * memoSize {
			addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			req := &policy.Request{Client: policy.Client{Addr: addr}, Sender: mailaddr.Parse("a@example.org")}
			if got, credit, _ := m.identities(req, 32, 64); got != "net:"+addr.String()+"/32" || credit != got+" example.org" {
				t.Fatalf("%v is %q, %q", addr, got, credit)
			}
		}
	}
}

// countedNames count how often they are asked.
type countedNames int

func (n *countedNames) Generic(string, netip.Addr) bool {
	*n++
	return false
}

func TestWhatTheMemoHolds(t *testing.T) {
	long := strings.Repeat("a", 255)
	now := time.Unix(1e9, 0)
	for _, tt := range []struct {
		name          string
		first, second func(*policy.Request)
		remembered    bool
	}{
		{"the same", nil, nil, true},
		{"just in time", nil, func(r *policy.Request) { r.Time = now.Add(memoFor - 1) }, true},
		{"too late", nil, func(r *policy.Request) { r.Time = now.Add(memoFor) }, false},
		{"by a clock that was ahead", nil, func(r *policy.Request) { r.Time = now.Add(-1) }, false},
		{"another address", nil, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.8") }, false},
		{"another name", nil, func(r *policy.Request) { r.Client.Name = "mx.example.net" }, false},
		{"another sender", nil, func(r *policy.Request) { r.Sender.Domain = "example.net" }, false},
		{"SPF passes", nil, func(r *policy.Request) { r.Facts.SPF = policy.SPF{Result: "pass"} }, false},
		{"a provider's", nil, func(r *policy.Request) { r.Facts.Provider = "p" }, false},
		{"one provider's, and none's", func(r *policy.Request) { r.Facts.Provider = "p" }, nil, false},
		{"a long name", func(r *policy.Request) { r.Client.Name = long }, func(r *policy.Request) { r.Client.Name = long }, true},
		{"too long a name", func(r *policy.Request) { r.Client.Name = long + "a" }, func(r *policy.Request) { r.Client.Name = long + "a" }, false},
		{"a long sender", func(r *policy.Request) { r.Sender.Domain = long }, func(r *policy.Request) { r.Sender.Domain = long }, true},
		{"too long a sender", func(r *policy.Request) { r.Sender.Domain = long + "a" }, func(r *policy.Request) { r.Sender.Domain = long + "a" }, false},
	} {
		names := new(countedNames)
		m := newMemo(names)
		ask := func(edit func(*policy.Request)) {
			req := &policy.Request{
				Time: now, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Name: "mx.example.org"}, Sender: mailaddr.Parse("a@example.org"),
			}
			if edit != nil {
				edit(req)
			}
			m.identities(req, 24, 64)
		}
		ask(tt.first)
		for i := range m.slots { // what is remembered stands in the place of all others
			if r := m.slots[i].Load(); r != nil {
				for j := range m.slots {
					m.slots[j].Store(r)
				}
				break
			}
		}
		before := *names
		ask(tt.second)
		if remembered := *names == before; remembered != tt.remembered {
			t.Errorf("%s: remembered %v", tt.name, remembered)
		}
	}
}

func TestRecipient(t *testing.T) {
	for _, tt := range []struct {
		in   policy.Address
		want string
	}{
		{mailaddr.Parse("Bob"), "bob"},
		{mailaddr.Parse("bob@example.org"), "bob@example.org"},
		{mailaddr.Parse("Bob@example.org"), "bob@example.org"},
		{mailaddr.Parse("bob@Example.org"), "bob@example.org"},
		{mailaddr.Parse("bob@example.org."), "bob@example.org"},
	} {
		if got := recipient(tt.in); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.in.Raw, got, tt.want)
		}
	}
}

// Whatever a client is called, its identity is its network's or an
// organisational domain above its own name, and always the same.
func FuzzIdentity(f *testing.F) {
	f.Add("192-0-2-7.example.org", []byte{192, 0, 2, 7})
	f.Add("mail.example.org", []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Add("0123456789.999.dyn7.example.org", []byte{192, 0, 2, 7})
	f.Add("..", []byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, name string, raw []byte) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok || len(name) > 300 {
			return
		}
		req := &policy.Request{Time: time.Unix(1e9, 0), Client: policy.Client{Addr: addr.Unmap(), Name: mailaddr.Domain(name)}}
		m := newMemo(testNames)
		who, _, ok := m.identities(req, 24, 64)
		if again, _, _ := m.identities(req, 24, 64); again != who {
			t.Fatalf("%q %v: %q, from memory %q", name, addr, who, again)
		}
		org, named := strings.CutPrefix(who, "org:")
		network, _ := strings.CutPrefix(who, "net:")
		switch prefix, err := netip.ParsePrefix(network); {
		case !ok:
			t.Fatalf("%q %v has no identity", name, addr)
		case named && (org == "" || !strings.HasSuffix(req.Client.Name, org)):
			t.Fatalf("%q %v: %q is not above the name", name, addr, who)
		case !named && (err != nil || !prefix.Contains(req.Client.Addr)):
			t.Fatalf("%q %v: %q is not its network", name, addr, who)
		}
	})
}
