package resolver

import "time"

// ServerStatus is what is known of one name server.
type ServerStatus struct {
	Address string `json:"address"` // with port
	// Healthy is false after several queries in a row without any answer. An
	// unhealthy server is asked last, and tried again in the background.
	Healthy     bool          `json:"healthy"`
	LastError   string        `json:"last_error,omitempty"`
	LastErrorAt time.Time     `json:"last_error_at,omitzero"`
	RTT         time.Duration `json:"rtt"`      // moving mean, 0 before the first answer
	Queries     uint64        `json:"queries"`  // sent
	Failures    uint64        `json:"failures"` // without a usable answer
}

// Stats counts since the start.
type Stats struct {
	Entries  int    `json:"entries"`   // answers in the cache
	Hits     uint64 `json:"hits"`      // look-ups answered from the cache
	Misses   uint64 `json:"misses"`    // look-ups that had to ask or wait
	Stale    uint64 `json:"stale"`     // look-ups answered with a stale answer
	InFlight int    `json:"in_flight"` // look-ups that wait for a server now
	Queued   int    `json:"queued"`    // look-ups that wait for their turn now
}

// MX is one mail exchanger.
type MX struct {
	Pref uint16
	Host string // lower case, no trailing dot; "" is the null MX (RFC 7505)
}
