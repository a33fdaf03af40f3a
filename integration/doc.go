// Package integration tests the whole: the real binary, asked by a real
// Postfix, over a real Redis and a DNS server with real packets.
package integration
