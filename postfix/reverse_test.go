package postfix

import (
	"context"
	"net"
	"slices"
	"testing"
)

// zone answers look-ups; "!" is an error.
type zone struct{ addrs, names map[string][]string }

func answer(of map[string][]string, key string) ([]string, error) {
	got := of[key]
	switch {
	case len(got) == 0:
		return nil, &net.DNSError{Err: "no such host", Name: key, IsNotFound: true}
	case got[0] == "!":
		return nil, &net.DNSError{Err: "timeout", Name: key, IsTimeout: true}
	}
	return slices.Clone(got), nil
}

func (z zone) LookupIPAddr(_ context.Context, host string) (out []net.IPAddr, err error) {
	all, err := answer(z.addrs, host)
	for _, a := range all {
		out = append(out, net.IPAddr{IP: net.ParseIP(a)})
	}
	return out, err
}

func (z zone) LookupAddr(_ context.Context, addr string) ([]string, error) {
	return answer(z.names, addr)
}

func TestCheckName(t *testing.T) {
	z := zone{
		addrs: map[string][]string{
			"good.postern.dev": {"198.51.100.1", "2001:db8::1"}, "nat.postern.dev": {"10.0.0.1"}, "nameless.postern.dev": {"198.51.100.2"},
			"other.postern.dev": {"198.51.100.3"}, "slow.postern.dev": {"!"}, "half.postern.dev": {"198.51.100.4"}, "one.postern.dev": {"198.51.100.1", "198.51.100.2"},
		},
		names: map[string][]string{
			"198.51.100.1": {"Good.postern.dev.", "one.postern.dev."}, "2001:db8::1": {"good.postern.dev."},
			"198.51.100.3": {"customer-3.isp.postern.dev."}, "198.51.100.4": {"!"},
		},
	}
	for _, tt := range []struct {
		name, main string
		want       []Severity
		where      string
	}{
		{"good", "myhostname = good.postern.dev\n", nil, ""},
		{"a dot, and capitals", "myhostname = Good.Postern.dev.\n", nil, ""},
		{"an address of its own network", "myhostname = nat.postern.dev\n", nil, ""},
		{"nobody's name", "myhostname = mx.example.org\n", nil, ""},
		{"not a full name", "myhostname = mx\n", nil, ""},
		{"no address", "myhostname = none.postern.dev\n", []Severity{Warning}, "myhostname"},
		{"no name", "myhostname = nameless.postern.dev\n", []Severity{Warning}, "myhostname"},
		{"another name", "myhostname = other.postern.dev\n", []Severity{Warning}, "myhostname"},
		{"one of two", "myhostname = one.postern.dev\n", []Severity{Warning}, "myhostname"},
		{"no answer", "myhostname = slow.postern.dev\n", []Severity{Note}, "myhostname"},
		{"no answer about the address", "myhostname = half.postern.dev\n", []Severity{Note}, "myhostname"},
		{"the name in HELO", "myhostname = good.postern.dev\nsmtp_helo_name = other.postern.dev\n", []Severity{Warning}, "smtp_helo_name"},
		{"the name in HELO is good", "myhostname = mx.example.org\nsmtp_helo_name = good.postern.dev\n", nil, ""},
	} {
		var got []Severity
		for _, f := range CheckName(t.Context(), setup(t, tt.main, ""), z) {
			if f.Slug != "helo-reverse" || f.Where != tt.where || f.Text == "" || f.Severity == Warning && f.Fix == "" {
				t.Errorf("%s: %+v", tt.name, f)
			}
			got = append(got, f.Severity)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
