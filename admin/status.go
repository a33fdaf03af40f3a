package admin

import (
	"time"

	"postern/access"
	"postern/greylist"
	"postern/headercheck"
	"postern/lookup"
	"postern/milter"
	"postern/policy"
	"postern/policyd"
	"postern/provider"
	"postern/rbl"
	"postern/resolver"
	"postern/store"
	"postern/verify"
)

// Status is what `postern status` shows.
type Status struct {
	Version  string                 `json:"version"`
	PID      int                    `json:"pid"`
	Hostname string                 `json:"hostname"`
	Started  time.Time              `json:"started"`
	Mode     policy.Mode            `json:"mode"`
	Config   ConfigStatus           `json:"config"`
	Chains   map[string][]CheckMode `json:"chains"`
	Policy   policyd.Status         `json:"policy"`
	Milter   milter.Status          `json:"milter"`
	Lookup   lookup.Status          `json:"lookup"`
	Store    store.Status           `json:"store"`
	DNS      DNSStatus              `json:"dns"`
	RBL      []rbl.Status           `json:"rbl"`
	Access   access.Status          `json:"access"`
	Provider []provider.Status      `json:"provider,omitempty"`
	Headers  []headercheck.Status   `json:"headers,omitempty"`
	Tables   []lookup.TableStatus   `json:"tables,omitempty"`
	Verify   verify.Status          `json:"verify"`
	Greylist greylist.Status        `json:"greylist"`
	// Goroutines tells a leak.
	Goroutines int      `json:"goroutines"`
	Warnings   []string `json:"warnings,omitempty"`
}

// ConfigStatus tells which configuration runs.
type ConfigStatus struct {
	Path     string    `json:"path"`
	Loaded   time.Time `json:"loaded"`
	Fault    string    `json:"fault,omitempty"`    // why the last reload was refused
	FaultAt  time.Time `json:"fault_at,omitzero"`  // when it was
	Restarts []string  `json:"restarts,omitempty"` // changed settings that wait for a restart
}

// CheckMode is a check of a chain and the mode in which it runs there.
type CheckMode struct {
	Check string      `json:"check"`
	Mode  policy.Mode `json:"mode"`
}

// DNSStatus is the health of name resolution.
type DNSStatus struct {
	Servers []resolver.ServerStatus `json:"servers"`
	Stats   resolver.Stats          `json:"stats"`
}
