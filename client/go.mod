module github.com/stint-dev/stint/client

go 1.25
