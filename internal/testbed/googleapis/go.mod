module testbed/googleapis

go 1.26.0

require google.golang.org/api v0.311.0
