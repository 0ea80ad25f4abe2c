// Ranges stores a few keys at once and walks over them, page by page and over one stream.
package main

import (
	"context"
	"fmt"
	"log"

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
	planets := map[string]any{
		"planet/1": "Mercury", "planet/2": "Venus", "planet/3": "Earth", "planet/4": "Mars", "planet/5": "Jupiter",
	}
	if _, err := client.BatchPut(ctx, planets); err != nil {
		return err
	}

	// Pages are fetched as the loop goes: two requests for four entries here.
	for entry, err := range client.Range(ctx, kvstore.WithPrefix("planet/"), kvstore.WithPageSize(2), kvstore.WithLimit(4)) {
		if err != nil {
			return err
		}
		fmt.Println(entry.Key, entry.Text)
	}

	// One stream; leaving the loop closes it.
	for entry, err := range client.Scan(ctx, kvstore.WithStart("planet/"), kvstore.WithEnd("planet0"), kvstore.WithReverse(), kvstore.WithKeysOnly()) {
		if err != nil {
			return err
		}
		fmt.Println("the last key is", entry.Key)
		break
	}

	for key := range planets {
		if _, err := client.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}
