// Session sends ten thousand writes over one stream without waiting for each.
package main

import (
	"context"
	"fmt"
	"log"
	"time"

	kvstore "github.com/kvstore/kvstore/clients/go"
)

func main() {
	client, err := kvstore.New(kvstore.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := run(context.Background(), client); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, client *kvstore.Client) error {
	const writes = 10_000
	session, err := client.Session(ctx)
	if err != nil {
		return err
	}
	defer session.Close()

	started := time.Now()
	pending := make([]*kvstore.Pending[uint64], writes)
	for i := range pending {
		// Waits only while the window is full.
		pending[i] = session.Put(ctx, fmt.Sprintf("example/session/%d", i%100), i, kvstore.WithTTL(time.Minute))
	}
	for _, put := range pending {
		if _, err := put.Wait(ctx); err != nil {
			return err
		}
	}
	took := time.Since(started)
	fmt.Printf("%d writes in %v: %.0f each second\n", writes, took.Round(time.Millisecond), writes/took.Seconds())

	// Operations on one key keep their order: this sees the last write.
	entry, err := session.Get(ctx, "example/session/99").Wait(ctx)
	if err != nil {
		return err
	}
	fmt.Println("the last value is", entry.Text)
	return session.Close()
}
