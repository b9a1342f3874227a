package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

const (
	startHeap  = 96 << 20 // bytes
	smallHeap  = 30 << 20
	heapMargin = 8 << 20
)

// tuneMemory lets the heap grow by what the collector has to look through, so that
// collecting stays a small part of the work. What holds no pointers, such as the
// index of revocations, costs the collector nothing and is given no room to grow.
// Until settle is called there is room for what only starting needs. The environment
// comes first.
func tuneMemory(ctx context.Context) (settle func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	var least atomic.Int64
	limit := func() { debug.SetMemoryLimit(max(least.Load(), memoryLimit())) }
	runtime.MemProfileRate = 0 // nobody reads that profile
	debug.SetGCPercent(400)
	least.Store(startHeap)
	limit()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(500 * time.Millisecond):
				limit()
			}
		}
	}()
	return func() {
		least.Store(smallHeap)
		limit()
	}
}

// memoryLimit is what is alive, what the runtime holds beside the heap or cannot
// use of it, and room for garbage. The limit of the runtime is for all of that.
func memoryLimit() int64 {
	m := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/heap:bytes"},
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(m)
	get := func(i int) int64 { return int64(m[i].Value.Uint64()) }
	beside := get(2) - get(3) - get(4) - get(5)
	return get(0) + beside + max(heapMargin, 3*get(1)/2)
}
