// Package docs holds documents that the daemon shows.
package docs

import _ "embed" // Configuration

// Configuration is the reference of the configuration, docs/configuration.md.
//
//go:embed configuration.md
var Configuration string
