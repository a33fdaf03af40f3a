package lookup

import (
	"strings"
	"testing"
	"time"

	"postern/internal/conf"
	"postern/internal/listen"
)

func TestConfigFaults(t *testing.T) {
	c := DefaultConfig()
	var faults conf.Faults
	if c.Validate("lookup", &faults); faults != nil {
		t.Error(faults)
	}
	c.IdleTimeout = 0
	c.Listen = nil
	if c.Validate("lookup", &faults); faults != nil {
		t.Error(faults)
	}
	var a listen.Address
	if err := a.UnmarshalText([]byte("tcp:127.0.0.1:0,chain=relay")); err != nil {
		t.Fatal(err)
	}
	c = Config{Listen: []listen.Address{a}, MaxRequest: 9999, LookupTimeout: conf.Duration(time.Minute), IdleTimeout: conf.Duration(time.Second)}
	c.Validate("lookup", &faults)
	for _, want := range []string{
		"lookup.listen[0]: chain=relay has no meaning here",
		"lookup.max_connections: 0 is out of range: 1 to 100000",
		"lookup.max_request: 9999 is out of range: 10000 to 8388608",
		"lookup.request_timeout: 0s is out of range: 100ms to 1m40s",
		"lookup.lookup_timeout: 1m is out of range: 100ms to 30s",
		"lookup.write_timeout: 0s is out of range",
		"lookup.idle_timeout: 1s is out of range: 10s to 1d",
		"lookup.reload_interval: 0s is out of range: 100ms to 1h",
	} {
		if !strings.Contains(faults.Error(), want) {
			t.Errorf("want %q in\n%v", want, faults)
		}
	}
	if len(faults) != 8 {
		t.Errorf("%d faults:\n%v", len(faults), faults)
	}
}
