// Package console tries the console in a real browser, in front of a running
// daemon.
package console
