// Command story is what clients/cluster has this client do: for each line "PREFIX COUNT" it puts and gets as many keys, and says "done".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"time"

	kvstore "github.com/kvstore/kvstore/clients/go"
)

// A shard has no leader for a while after one was killed.
const timeout = 20 * time.Second

func main() {
	client, err := kvstore.New(kvstore.Config{Timeout: timeout})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for {
		var prefix string
		var count int
		if _, err := fmt.Scanln(&prefix, &count); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		for number := range count {
			if err := putAndGet(client, fmt.Sprintf("%s/%d", prefix, number), number); err != nil {
				log.Fatal(err)
			}
		}
		fmt.Println("done")
	}
}

func putAndGet(client *kvstore.Client, key string, value int) error {
	if _, err := client.Put(context.Background(), key, value); err != nil {
		return fmt.Errorf("put of %s: %w", key, err)
	}
	entry, err := client.Get(context.Background(), key)
	if err != nil {
		return fmt.Errorf("get of %s: %w", key, err)
	}
	if entry == nil || entry.Text != fmt.Sprint(value) {
		return fmt.Errorf("get of %s: %v, want %d", key, entry, value)
	}
	return nil
}
